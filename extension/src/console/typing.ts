/** Typing text into a guest, key by key, so that it works in any guest: at a login prompt, in a boot loader. */
import { type Key, keysOf, typeable } from './keys';
import type { Api } from './types';

/** How text gets in: a piece at a time, so that it can be stopped. */
export interface Typist {
  /** characters in a piece */
  readonly piece: number;
  type(text: string): Promise<void>;
}

/** Through the server, which knows when the guest has read a key: nothing is lost, however slow the guest is. */
export function serverTypist(api: Api, machine: string): Typist {
  return {
    piece: 40,
    type: async text => {
      await api.post(`machines/${encodeURIComponent(machine)}/type`, { text });
    }
  };
}

/** QEMU's keyboard forgets keys that come faster than the guest reads them: ms between two characters. */
const PACE_MS = 25;

/** Over the VNC connection, where there is no server; `send` returns whether it could. */
export function vncTypist(send: (keys: readonly Key[]) => boolean): Typist {
  return {
    piece: 1,
    type: async text => {
      for (const character of text) {
        const keys = keysOf(character);
        if (keys) {
          if (!send(keys)) {
            throw new Error('The console has lost its connection, or is for viewing only.');
          }
          await new Promise(resolve => setTimeout(resolve, PACE_MS));
        }
      }
    }
  };
}

/**
 * Type a text; returns how much of it was typed, and the characters that no key gives and that were left out.
 *
 * `progress` is told the part done, from 0 to 1; `signal` stops it between two pieces.
 */
export async function typeText(
  text: string,
  typist: Typist,
  progress: (fraction: number) => void,
  signal: AbortSignal
): Promise<{ typed: number; total: number; left: string[] }> {
  const { text: kept, left } = typeable(text);
  const total = kept.length;
  let typed = 0;
  while (typed < total && !signal.aborted) {
    await typist.type(kept.slice(typed, typed + typist.piece));
    typed = Math.min(total, typed + typist.piece);
    progress(typed / total);
  }
  return { typed, total, left };
}
