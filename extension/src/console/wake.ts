/** Tells when the computer is awake or online again, and when a hidden page is looked at again. */

type Listener = (slept: boolean) => void;

const listeners = new Set<Listener>();
const TICK_MS = 10_000;
/** Browsers slow the timers of visible pages by seconds at most; a longer gap was a sleep. */
const SLEPT_MS = 30_000;
let timer: ReturnType<typeof setInterval> | undefined;
let last = 0;

function tell(slept: boolean): void {
  last = Date.now();
  for (const listener of [...listeners]) {
    listener(slept);
  }
}

function ticked(): void {
  const gap = Date.now() - last;
  last = Date.now();
  if (gap > TICK_MS + SLEPT_MS && document.visibilityState === 'visible') {
    tell(true);
  }
}

function online(): void {
  tell(false);
}

function visible(): void {
  if (document.visibilityState === 'visible') {
    tell(false);
  }
}

/** Call `listener` at each of these; the returned function ends that. */
export function onWake(listener: Listener): () => void {
  if (listeners.size === 0) {
    last = Date.now();
    timer = setInterval(ticked, TICK_MS);
    window.addEventListener('online', online);
    document.addEventListener('visibilitychange', visible);
  }
  listeners.add(listener);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0) {
      clearInterval(timer);
      window.removeEventListener('online', online);
      document.removeEventListener('visibilitychange', visible);
    }
  };
}
