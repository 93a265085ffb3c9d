/** Keys by name: what the menu of chords sends, and what text becomes when it is typed. */

export interface Key {
  keysym: number;
  /** as in `KeyboardEvent.code`: the place on a US keyboard */
  code: string;
}

const KEYS: Record<string, Key> = {
  Ctrl: { keysym: 0xffe3, code: 'ControlLeft' },
  Alt: { keysym: 0xffe9, code: 'AltLeft' },
  Shift: { keysym: 0xffe1, code: 'ShiftLeft' },
  Super: { keysym: 0xffeb, code: 'MetaLeft' },
  Delete: { keysym: 0xffff, code: 'Delete' },
  Backspace: { keysym: 0xff08, code: 'Backspace' },
  Tab: { keysym: 0xff09, code: 'Tab' },
  Enter: { keysym: 0xff0d, code: 'Enter' },
  Escape: { keysym: 0xff1b, code: 'Escape' },
  Print: { keysym: 0xff61, code: 'PrintScreen' }
};
for (let n = 1; n <= 12; n++) {
  KEYS[`F${n}`] = { keysym: 0xffbd + n, code: `F${n}` };
}

/** Chords that a browser or the computer keeps for itself. */
export const CHORDS: readonly string[] = [
  'Ctrl+Alt+Delete',
  'Ctrl+Alt+Backspace',
  'Alt+Tab',
  'Alt+F4',
  'Super',
  'Print',
  'Escape',
  'Ctrl+Alt+F1',
  'Ctrl+Alt+F2',
  'Ctrl+Alt+F3',
  'Ctrl+Alt+F4',
  'Ctrl+Alt+F5',
  'Ctrl+Alt+F6',
  'Ctrl+Alt+F7'
];

/** The keys of a chord such as `Ctrl+Alt+Delete`, in the order in which they go down. */
export function chord(name: string): Key[] {
  return name.split('+').map(word => {
    const key = KEYS[word];
    if (!key) {
      throw new Error(`There is no key named ${word}.`);
    }
    return key;
  });
}

const PLACES: Record<string, string> = {
  '`~': 'Backquote',
  '-_': 'Minus',
  '=+': 'Equal',
  '[{': 'BracketLeft',
  ']}': 'BracketRight',
  '\\|': 'Backslash',
  ';:': 'Semicolon',
  '\'"': 'Quote',
  ',<': 'Comma',
  '.>': 'Period',
  '/?': 'Slash',
  '  ': 'Space',
  '1!': 'Digit1',
  '2@': 'Digit2',
  '3#': 'Digit3',
  '4$': 'Digit4',
  '5%': 'Digit5',
  '6^': 'Digit6',
  '7&': 'Digit7',
  '8*': 'Digit8',
  '9(': 'Digit9',
  '0)': 'Digit0'
};

const CHARACTERS = new Map<string, { key: Key; shift: boolean }>();
for (const [pair, code] of Object.entries(PLACES)) {
  [...pair].forEach((char, index) => {
    if (!CHARACTERS.has(char)) {
      CHARACTERS.set(char, { key: { keysym: char.charCodeAt(0), code }, shift: index === 1 });
    }
  });
}
for (const letter of 'abcdefghijklmnopqrstuvwxyz') {
  const upper = letter.toUpperCase();
  const code = `Key${upper}`;
  CHARACTERS.set(letter, { key: { keysym: letter.charCodeAt(0), code }, shift: false });
  CHARACTERS.set(upper, { key: { keysym: upper.charCodeAt(0), code }, shift: true });
}
CHARACTERS.set('\n', { key: KEYS.Enter as Key, shift: false });
CHARACTERS.set('\t', { key: KEYS.Tab as Key, shift: false });

/** The keys that type a character on a US keyboard; null if there are none. */
export function keysOf(character: string): Key[] | null {
  const found = CHARACTERS.get(character);
  if (!found) {
    return null;
  }
  return found.shift ? [KEYS.Shift as Key, found.key] : [found.key];
}

/** Text as it is typed (one kind of line end), and the characters that no key of a US keyboard gives. */
export function typeable(text: string): { text: string; left: string[] } {
  const left = new Set<string>();
  let kept = '';
  for (const character of text.replace(/\r\n?/g, '\n')) {
    if (CHARACTERS.has(character)) {
      kept += character;
    } else {
      left.add(character);
    }
  }
  return { text: kept, left: [...left] };
}
