/**
 * The connection of a console as a state machine: pure, so that every turn of it can be tested.
 *
 * `step` is given what happened and returns the next state. `connection.ts` does what a change of `link` asks for
 * (open, close, wait), and `face` says what a person is shown.
 */

export type Link = 'idle' | 'connecting' | 'connected' | 'waiting';
export type Problem = 'gone' | 'forbidden' | 'unreachable' | 'hypervisor';

/** Codes with which vmlab's server closes a console's WebSocket. */
export const CLOSE = { gone: 4404, off: 4409, ended: 4410, noHypervisor: 4503 } as const;

export interface State {
  /** Somebody can see it: it is on the screen and not minimised. */
  readonly wanted: boolean;
  /** Changes are told to us by events; if not, we have to try. */
  readonly told: boolean;
  readonly link: Link;
  /** How often it failed in a row. */
  readonly attempt: number;
  /** When the next attempt is due, in ms as of `Date.now()`. */
  readonly retryAt: number | null;
  readonly openedAt: number;
  /** The machine's state as far as known. */
  readonly machine: string | null;
  readonly doing: string | null;
  readonly problem: Problem | null;
}

export type Happened =
  | { type: 'wanted'; wanted: boolean }
  | { type: 'opened'; now: number }
  /** `jitter` from 0 to 1, so that many consoles do not come back in the same instant */
  | { type: 'closed'; code: number; now: number; jitter: number }
  /** the time to wait is over */
  | { type: 'due' }
  /** a person asked for it, or the computer woke up or is online again */
  | { type: 'retry' }
  /** `pushed`: it has just changed; otherwise: it is so, we asked */
  | { type: 'machine'; state: string | null; doing: string | null; pushed: boolean }
  /** a request failed; status 0: no answer; `ours`: vmlab's server itself said so, and no proxy before it */
  | { type: 'failed'; status: number; ours?: boolean };

export type Face =
  | 'live'
  | 'paused'
  | 'asleep'
  | 'crashed'
  | 'connecting'
  | 'waiting'
  | 'busy'
  | 'off'
  | 'gone'
  | 'forbidden'
  | 'unreachable'
  | 'hypervisor';

/** A connection that held this long was a good one: the next failure is the first again. */
const STABLE_MS = 5000;
const FIRST_MS = 250;
const LONGEST_MS = 10_000;
/** How often we look whether a machine runs again when nobody tells us. */
const LOOK_MS = 5000;
/** We will be told when what is being done to the machine is over; in case we are not: */
const DOING_MS = 1500;

export function initial(options: { wanted: boolean; told: boolean }): State {
  return {
    wanted: options.wanted,
    told: options.told,
    link: options.wanted ? 'connecting' : 'idle',
    attempt: 0,
    retryAt: null,
    openedAt: 0,
    machine: null,
    doing: null,
    problem: null
  };
}

/** Whether a machine in this state has a screen. Unknown counts as yes: the server will say. */
export function runs(state: string | null): boolean {
  return state === null || ['running', 'paused', 'asleep', 'crashed'].includes(state);
}

/** How long to wait before attempt number `attempt` (from 0), in ms. */
export function backoff(attempt: number, jitter: number): number {
  return Math.round(Math.min(FIRST_MS * 2 ** attempt, LONGEST_MS) * (0.8 + 0.4 * jitter));
}

function connecting(state: State): State {
  return { ...state, link: 'connecting', retryAt: null };
}

function idle(state: State): State {
  return { ...state, link: 'idle', retryAt: null, attempt: 0 };
}

/** Bring `link` in line with whether there is somebody to see it and something to be seen. */
function settled(state: State): State {
  const possible =
    state.wanted &&
    state.problem !== 'gone' &&
    state.problem !== 'forbidden' &&
    (runs(state.machine) || state.doing !== null || !state.told);
  if (!possible) {
    return state.link === 'idle' ? state : idle(state);
  }
  return state.link === 'idle' ? connecting(state) : state;
}

function closed(state: State, code: number, now: number, jitter: number): State {
  if (state.link !== 'connecting' && state.link !== 'connected') {
    return state; // we closed it ourselves
  }
  if (code === CLOSE.gone && state.doing === null) {
    return idle({ ...state, problem: 'gone' });
  }
  if (code === CLOSE.off && state.doing === null) {
    const machine = state.machine === null || runs(state.machine) ? 'off' : state.machine;
    if (state.told) {
      return idle({ ...state, machine, problem: null });
    }
    return { ...state, machine, problem: null, link: 'waiting', attempt: 0, retryAt: now + LOOK_MS };
  }
  const stable = state.link === 'connected' && now - state.openedAt >= STABLE_MS;
  const attempt = stable ? 0 : state.attempt;
  const least = state.told && state.doing !== null ? DOING_MS : 0;
  return {
    ...state,
    link: 'waiting',
    attempt: attempt + 1,
    retryAt: now + Math.max(least, backoff(attempt, jitter)),
    problem: code === CLOSE.noHypervisor ? 'hypervisor' : state.problem
  };
}

export function step(state: State, happened: Happened): State {
  switch (happened.type) {
    case 'wanted':
      return settled({ ...state, wanted: happened.wanted, attempt: 0 });
    case 'opened':
      return state.link === 'connecting'
        ? {
            ...state,
            link: 'connected',
            openedAt: happened.now,
            problem: null,
            // Nobody tells us, but a screen is there.
            machine: runs(state.machine) ? state.machine : 'running'
          }
        : state;
    case 'closed':
      return closed(state, happened.code, happened.now, happened.jitter);
    case 'due':
      return state.link === 'waiting' ? connecting(state) : state;
    case 'retry':
      if (state.link === 'connected' || state.link === 'connecting') {
        return state;
      }
      return settled(idle({ ...state, problem: null }));
    case 'machine': {
      const next = {
        ...state,
        machine: happened.state ?? state.machine,
        doing: happened.doing,
        problem: null
      };
      if (happened.pushed && next.link === 'waiting' && next.machine !== null && runs(next.machine)) {
        return connecting({ ...next, attempt: 0 });
      }
      return settled(next);
    }
    case 'failed':
      switch (happened.status) {
        case 401:
        case 403:
          return settled({ ...state, problem: 'forbidden' });
        case 404:
          return settled({ ...state, problem: 'gone' });
        default:
          return state.link === 'connected'
            ? state
            : { ...state, problem: happened.ours && happened.status >= 500 ? 'hypervisor' : 'unreachable' };
      }
  }
}

/** What a person is shown: a live screen, or why there is none. */
export function face(state: State): Face {
  if (state.problem === 'gone' || state.problem === 'forbidden') {
    return state.problem;
  }
  if (state.link === 'connected' || !state.wanted) {
    const still = ['paused', 'asleep', 'crashed'].includes(state.machine ?? '');
    if (still && state.doing === null) {
      return state.machine as Face;
    }
    if (state.link === 'connected') {
      return 'live';
    }
  }
  if (state.doing !== null) {
    return 'busy';
  }
  if (!runs(state.machine)) {
    return 'off';
  }
  if (state.problem !== null) {
    return state.problem;
  }
  if (!state.wanted) {
    return state.machine === 'running' ? 'live' : 'connecting';
  }
  return state.link === 'waiting' && state.attempt > 2 ? 'waiting' : 'connecting';
}
