/**
 * Sizes and times as people read them; the same words as `vmlab/render/units.py`.
 */

export function size(count: number | null | undefined): string {
  if (count === null || count === undefined) {
    return '–';
  }
  if (Math.abs(count) < 1024) {
    return `${Math.round(count)} B`;
  }
  let value = count;
  let unit = '';
  for (unit of ['KiB', 'MiB', 'GiB', 'TiB']) {
    value /= 1024;
    if (Math.abs(value) < 1024) {
      break;
    }
  }
  return `${value.toFixed(Math.abs(value) < 9.95 ? 1 : 0)} ${unit}`;
}

/** One decimal below ten, so that an idle guest is seen to be idle. */
export function percent(value: number): string {
  return `${value.toFixed(value > 0 && value < 9.95 ? 1 : 0)} %`;
}

export function ago(when: Date, now = new Date()): string {
  const seconds = (now.getTime() - when.getTime()) / 1000;
  if (seconds < 2) {
    return 'just now';
  }
  if (seconds < 60) {
    return `${Math.floor(seconds)} s ago`;
  }
  if (seconds < 3600) {
    return `${Math.floor(seconds / 60)} min ago`;
  }
  if (seconds < 86400) {
    return `${Math.floor(seconds / 3600)} h ago`;
  }
  const days = Math.floor(seconds / 86400);
  return days === 1 ? '1 day ago' : `${days} days ago`;
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number} ${number === 1 ? one : many}`;
}

/** A regular expression; also for the `pattern` of a field. */
export const NAME = '[A-Za-z0-9][A-Za-z0-9._\\-]{0,39}';

/** The same for a snapshot, whose name is only shown. */
export const LABEL = '(?![\\-.\\s])[^@$`\'"\\\\\\{\\}*?\\[\\];]{1,80}';

export const LABEL_RULE =
  'Use 1 to 80 letters, digits, signs and blanks; no quotes, none of @ $ ` \\ { } * ? [ ] ;, no “-” or “.” at the start.';

const WHOLE_NAME = new RegExp(`^${NAME}$`);

export const NAME_RULE = 'Use 1 to 40 letters, digits, “.”, “_” or “-”, starting with a letter or digit.';

/** Why a name cannot be that of a machine, in a sentence; null if it can. */
export function nameTrouble(name: string): string | null {
  return WHOLE_NAME.test(name) ? null : NAME_RULE;
}

const WHOLE_LABEL = new RegExp(`^${LABEL}$`);

/** Why a name cannot be that of a snapshot, in a sentence; null if it can. */
export function labelTrouble(name: string): string | null {
  return WHOLE_LABEL.test(name) && name === name.trim() ? null : LABEL_RULE;
}

/** A name like `wanted` that is not taken: `tiny`, `tiny-2`, `tiny-3` ... */
export function freeName(wanted: string, taken: Iterable<string>): string {
  const known = new Set(taken);
  let name = wanted;
  for (let number = 2; known.has(name); number++) {
    name = `${wanted}-${number}`;
  }
  return name;
}
