import { describe, expect, it } from 'vitest';
import { CHORDS, chord, keysOf, typeable } from '../src/console/keys';
import { typeText } from '../src/console/typing';

describe('keys', () => {
  it('knows every key of every chord in the menu', () => {
    for (const name of CHORDS) {
      expect(chord(name).every(key => key.keysym > 0 && key.code !== '')).toBe(true);
    }
    expect(chord('Ctrl+Alt+F7').map(key => key.code)).toEqual(['ControlLeft', 'AltLeft', 'F7']);
    expect(() => chord('Ctrl+Nonsense')).toThrow('Nonsense');
  });

  it('has keys for every printable character of ASCII', () => {
    for (let code = 32; code < 127; code++) {
      expect(keysOf(String.fromCharCode(code)), String.fromCharCode(code)).not.toBeNull();
    }
    expect(keysOf('a')?.map(key => key.code)).toEqual(['KeyA']);
    expect(keysOf('~')?.map(key => key.code)).toEqual(['ShiftLeft', 'Backquote']);
    expect(keysOf('\\')?.map(key => key.code)).toEqual(['Backslash']);
    expect(keysOf(' ')?.map(key => key.code)).toEqual(['Space']);
    expect(keysOf('ü')).toBeNull();
  });

  it('makes one kind of line end and tells what it cannot type', () => {
    expect(typeable('a\r\nb\rc\n')).toEqual({ text: 'a\nb\nc\n', left: [] });
    expect(typeable('5 € ü €')).toEqual({ text: '5   ', left: ['€', 'ü'] });
  });
});

describe('typing', () => {
  it('types in pieces, tells how far it is, and can be stopped', async () => {
    const pieces: string[] = [];
    const done: number[] = [];
    const abort = new AbortController();
    const typist = {
      piece: 3,
      type: (text: string) => {
        pieces.push(text);
        if (pieces.length === 3) {
          abort.abort();
        }
        return Promise.resolve();
      }
    };
    const result = await typeText('abcdeéfghijkl', typist, part => done.push(part), abort.signal);
    expect(pieces).toEqual(['abc', 'def', 'ghi']);
    expect(done).toEqual([0.25, 0.5, 0.75]);
    expect(result).toEqual({ typed: 9, total: 12, left: ['é'] });
  });
});
