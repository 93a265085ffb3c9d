/** Small helpers over the DOM. */
import css from './style.css';

type Attributes = Record<string, string | boolean | undefined>;

/** Make an element: `h('div', {class: 'x', hidden: true}, 'text', child)`. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) {
      element.setAttribute(name, '');
    } else if (typeof value === 'string') {
      element.setAttribute(name, value);
    }
  }
  element.append(...children);
  return element;
}

/** JupyterLab runs no shortcut while an element with this attribute, or one inside of it, has the focus. */
const SUPPRESSES = 'data-lm-suppress-shortcuts';
export const QUIET: Attributes = { [SUPPRESSES]: 'true' };

export function setQuiet(element: Element, quiet: boolean): void {
  if (quiet) {
    element.setAttribute(SUPPRESSES, 'true');
  } else {
    element.removeAttribute(SUPPRESSES);
  }
}

/** Whether a key presses what has the focus, as if it were a button. */
export function presses(event: KeyboardEvent): boolean {
  const plain = !event.ctrlKey && !event.altKey && !event.metaKey && !event.shiftKey;
  return plain && (event.key === 'Enter' || event.key === ' ');
}

/** Put the style sheet where `host` is: into the page, or into the shadow tree that it is in. */
export function adoptStyle(host: HTMLElement): void {
  const root = host.getRootNode();
  const place = root instanceof ShadowRoot ? root : document.head;
  if (!place.querySelector('style[data-vmlab-console]')) {
    place.append(h('style', { 'data-vmlab-console': true }, css));
  }
}

/** Keep key presses from whatever is around: a notebook would take them for commands. But for those that `pass`. */
export function keepKeys(element: HTMLElement, pass: (event: KeyboardEvent) => boolean = () => false): void {
  for (const type of ['keydown', 'keyup', 'keypress'] as const) {
    element.addEventListener(type, event => {
      if (!pass(event)) {
        event.stopPropagation();
      }
    });
  }
}
