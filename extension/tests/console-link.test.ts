import { describe, expect, it } from 'vitest';
import { backoff, CLOSE, face, type Happened, initial, type State, step } from '../src/console/link';

const told = initial({ wanted: true, told: true });
const alone = initial({ wanted: true, told: false });

function after(state: State, ...happened: Happened[]): State {
  return happened.reduce(step, state);
}

const opened: Happened = { type: 'opened', now: 1000 };
const runs: Happened = { type: 'machine', state: 'running', doing: null, pushed: false };
const live = after(told, runs, opened);

function closed(code: number, now = 10_000): Happened {
  return { type: 'closed', code, now, jitter: 0.5 };
}

function pushed(state: string, doing: string | null = null): Happened {
  return { type: 'machine', state, doing, pushed: true };
}

describe('a console', () => {
  it('connects and is live', () => {
    expect(face(told)).toBe('connecting');
    expect(live.link).toBe('connected');
    expect(face(live)).toBe('live');
  });

  it('is idle while nobody can see it, and connects when shown', () => {
    const hidden = after(live, { type: 'wanted', wanted: false });
    expect(hidden.link).toBe('idle');
    expect(after(hidden, pushed('running')).link).toBe('idle');
    expect(after(hidden, { type: 'wanted', wanted: true }).link).toBe('connecting');
  });

  it('does not mind the end of a connection that it closed itself', () => {
    const hidden = after(live, { type: 'wanted', wanted: false });
    expect(after(hidden, closed(1000))).toBe(hidden);
  });

  it('shows a paused and a crashed guest over its picture, and stays connected', () => {
    expect(face(after(live, pushed('paused')))).toBe('paused');
    expect(face(after(live, pushed('crashed')))).toBe('crashed');
    expect(after(live, pushed('paused')).link).toBe('connected');
    expect(face(after(live, pushed('paused'), pushed('running')))).toBe('live');
  });
});

describe('a revert', () => {
  it('is busy while the screen is away, and connects in the moment in which the guest runs again', () => {
    const reverting = after(live, pushed('running', 'revert'));
    expect(face(reverting)).toBe('live');
    const away = after(reverting, closed(CLOSE.ended));
    expect(away.link).toBe('waiting');
    expect(face(away)).toBe('busy');
    const between = after(away, { type: 'due' }, closed(CLOSE.off));
    expect(between.link).toBe('waiting');
    expect(face(between)).toBe('busy');
    expect(after(between, pushed('suspended', 'revert')).link).toBe('waiting');
    expect(between.retryAt).toBe(11_500);
    const back = after(between, pushed('running'));
    expect(back.link).toBe('connecting');
    expect(back.attempt).toBe(0);
  });

  it('comes back without events, too', () => {
    const away = after(alone, opened, closed(CLOSE.ended));
    expect(away.link).toBe('waiting');
    expect(away.retryAt).toBe(10_250);
    expect(after(away, { type: 'due' }).link).toBe('connecting');
  });
});

describe('a machine that is off', () => {
  it('is not asked again and again when events will tell', () => {
    const off = after(told, closed(CLOSE.off));
    expect(off.link).toBe('idle');
    expect(face(off)).toBe('off');
    expect(after(off, pushed('running')).link).toBe('connecting');
  });

  it('is looked at now and then where there are no events', () => {
    const off = after(alone, closed(CLOSE.off));
    expect(face(off)).toBe('off');
    expect(off.retryAt).toBe(15_000);
    expect(face(after(off, { type: 'due' }))).toBe('off');
    expect(face(after(off, { type: 'due' }, opened))).toBe('live');
  });

  it('keeps what is known of it: suspended is not merely off', () => {
    expect(after(told, pushed('suspended'), closed(CLOSE.off)).machine).toBe('suspended');
  });

  it('is shown as off when it shuts down before our eyes', () => {
    const off = after(live, pushed('running', 'stop'), closed(CLOSE.ended), pushed('off'));
    expect(off.link).toBe('idle');
    expect(face(off)).toBe('off');
  });
});

describe('trouble', () => {
  it('waits longer and longer, up to a limit, and says so', () => {
    const times = [0, 1, 2, 3, 4, 5, 6, 7, 20].map(attempt => backoff(attempt, 0.5));
    expect(times.slice(0, 4)).toEqual([250, 500, 1000, 2000]);
    expect(Math.max(...times)).toBe(10_000);
    let state = after(live, closed(1006));
    expect(face(state)).toBe('connecting');
    for (let n = 0; n < 3; n++) {
      state = after(state, { type: 'due' }, closed(1006));
    }
    expect(face(state)).toBe('waiting');
    expect(state.retryAt).toBe(12_000);
  });

  it('backs off from a server that accepts and hangs up', () => {
    let state = after(told, runs);
    for (let n = 0; n < 4; n++) {
      state = after(state, { type: 'due' }, { type: 'opened', now: 10_000 }, closed(1006, 10_100));
    }
    expect(state.attempt).toBe(4);
  });

  it('begins anew after a connection that held', () => {
    const state = after(
      told,
      closed(1006),
      { type: 'due' },
      closed(1006),
      { type: 'due' },
      opened,
      closed(1006)
    );
    expect(state.attempt).toBe(1);
  });

  it('is not sent into a loop by its own questions', () => {
    const waiting = after(live, closed(1006));
    expect(after(waiting, runs).link).toBe('waiting');
  });

  it('tries at once when a person asks, or the computer woke up', () => {
    const waiting = after(live, closed(1006), { type: 'failed', status: 0 });
    expect(face(waiting)).toBe('unreachable');
    const again = after(waiting, { type: 'retry' });
    expect(again.link).toBe('connecting');
    expect(again.problem).toBeNull();
  });

  it('says that libvirt does not answer', () => {
    const state = after(live, closed(CLOSE.noHypervisor));
    expect(face(state)).toBe('hypervisor');
    expect(state.link).toBe('waiting');
    expect(face(after(state, { type: 'due' }, opened))).toBe('live');
  });

  it('tells the server that libvirt has failed from a proxy whose server is away', () => {
    const waiting = after(live, closed(1006));
    for (const [status, ours, shown] of [
      [503, true, 'hypervisor'],
      [502, true, 'hypervisor'],
      [502, false, 'unreachable'],
      [0, false, 'unreachable']
    ] as const) {
      expect(face(after(waiting, { type: 'failed', status, ours }))).toBe(shown);
    }
  });

  it('does not call a live console unreachable because a question failed', () => {
    expect(face(after(live, { type: 'failed', status: 0 }))).toBe('live');
  });

  it('stops for strangers until somebody asks', () => {
    for (const status of [401, 403]) {
      const state = after(told, closed(1006), { type: 'failed', status });
      expect(state.link).toBe('idle');
      expect(face(state)).toBe('forbidden');
      expect(after(state, { type: 'retry' }).link).toBe('connecting');
    }
  });

  it('says that a machine is gone, and notices when there is one of its name again', () => {
    const gone = after(live, { type: 'failed', status: 404 });
    expect(gone.link).toBe('idle');
    expect(face(gone)).toBe('gone');
    expect(face(after(told, closed(CLOSE.gone)))).toBe('gone');
    expect(after(gone, pushed('running')).link).toBe('connecting');
  });
});
