/** What is said when there is no live screen, and what helps. */
import { doingText } from './doing';
import { face, type Face, type State } from './link';

export type Help = 'start' | 'resume' | 'kill' | 'retry';

export interface Words {
  face: Face;
  title: string;
  detail: string;
  /** when it is tried again; changes every second, so nobody shall be told each change */
  countdown: string;
  help: { action: Help; label: string } | null;
}

/** What is being done to a machine, as a headline. */
export function doingWords(doing: string): string {
  const text = doingText(doing);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Faces that go away by themselves when an attempt succeeds. */
const COUNTED: ReadonlySet<Face> = new Set(['waiting', 'unreachable', 'hypervisor']);

function again(state: State, now: number): string {
  const seconds = Math.ceil(((state.retryAt ?? now) - now) / 1000);
  return seconds > 1 ? `Trying again in ${seconds} s.` : 'Trying again …';
}

/** `can`: whether the machine can be acted on from here. */
export function words(state: State, name: string, can: boolean, now: number): Words {
  const shown = face(state);
  const say = (title: string, detail = '', action?: Help, label?: string): Words => ({
    face: shown,
    title,
    detail,
    countdown: COUNTED.has(shown) ? again(state, now) : '',
    help: action && label && (can || action === 'retry') ? { action, label } : null
  });
  switch (shown) {
    case 'live':
      return say('');
    case 'paused':
      return say('Paused', 'The guest stands still; nothing is lost.', 'resume', 'Resume');
    case 'asleep':
      return say('Asleep', 'The guest has put itself to sleep.', 'resume', 'Wake');
    case 'crashed':
      return say(`${name} has crashed`, 'This is its last picture.', 'kill', 'Switch off');
    case 'connecting':
      return say('Connecting …');
    case 'waiting':
      return say('The connection was lost', '', 'retry', 'Try now');
    case 'busy':
      return say(doingWords(state.doing ?? ''));
    case 'off':
      return state.machine === 'suspended'
        ? say(`${name} is suspended`, 'It goes on where it was.', 'start', 'Continue')
        : say(`${name} is off`, '', 'start', 'Start');
    case 'gone':
      return say(`There is no machine named ${name}`, 'It was deleted or renamed.', 'retry', 'Look again');
    case 'forbidden':
      return say(
        'Jupyter does not let you in',
        'You are signed out, or may not use consoles. Reload the page to sign in.',
        'retry',
        'Try again'
      );
    case 'unreachable':
      return navigator.onLine
        ? say('The server does not answer', '', 'retry', 'Try now')
        : say('You are offline', 'It comes back by itself when you are online.', 'retry', 'Try now');
    case 'hypervisor':
      return say('libvirt does not answer', '', 'retry', 'Try now');
  }
}
