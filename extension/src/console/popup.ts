/** What opens below a button: menus and small forms. One at a time. */
import { h, keepKeys, QUIET } from './dom';

export interface MenuItem {
  label: string;
  /** a second, quieter piece of text */
  note?: string;
  /** the URL of a picture */
  picture?: string;
  checked?: boolean;
  disabled?: boolean;
  /** a line above it */
  separated?: boolean;
  run?: () => void;
  /** opens this in place of the menu */
  items?: () => Promise<MenuItem[]> | MenuItem[];
}

/** Those that are open: one, and those in which something goes on. */
const open = new Set<Popup>();

export class Popup {
  readonly element: HTMLDivElement;
  /** Something goes on in it: it stays until it is closed by what is in it. */
  busy = false;
  private readonly _anchor: HTMLElement;
  private readonly _before: Element | null;
  private readonly _closed: (() => void) | undefined;

  /**
   * Open an empty popup below `anchor`, inside of `home`: in the top layer of the page, so that no cell clips it.
   * `closed` is called when it has closed, with the focus back where it was.
   */
  constructor(home: HTMLElement, anchor: HTMLElement, label: string, closed?: () => void) {
    closePopups(popup => !popup.busy);
    open.add(this);
    this._anchor = anchor;
    this._before = document.activeElement;
    this._closed = closed;
    this.element = h('div', {
      class: 'vmlab-console-popup',
      popover: 'manual',
      role: 'dialog',
      'aria-label': label,
      ...QUIET
    });
    keepKeys(this.element);
    this.element.addEventListener('keydown', event => {
      if (event.key === 'Escape') {
        event.preventDefault();
        this.close();
      }
    });
    home.append(this.element);
    anchor.setAttribute('aria-expanded', 'true');
    // Not all browsers know popovers; without, it lies above its surroundings by its z-index.
    this.element.showPopover?.();
    document.addEventListener('pointerdown', this._outside, true);
    window.addEventListener('resize', this._place);
    window.addEventListener('scroll', this._scrolled, true);
  }

  /** Show these elements, and move the focus to the first that takes it. */
  fill(...children: (Node | string)[]): void {
    this.element.replaceChildren(...children);
    this._place();
    const first = this.element.querySelector<HTMLElement>(
      '[data-first], [role^=menuitem]:not([aria-disabled=true]), input, textarea, button'
    );
    (first ?? this._focusable()).focus({ preventScroll: true });
  }

  close(): void {
    if (!open.delete(this)) {
      return;
    }
    document.removeEventListener('pointerdown', this._outside, true);
    window.removeEventListener('resize', this._place);
    window.removeEventListener('scroll', this._scrolled, true);
    const hadFocus = this.element.contains(document.activeElement);
    this._anchor.setAttribute('aria-expanded', 'false');
    this.element.remove();
    if (hadFocus) {
      const back = this._before?.isConnected ? this._before : this._anchor;
      (back as HTMLElement).focus({ preventScroll: true });
    }
    this._closed?.();
  }

  private _focusable(): HTMLElement {
    this.element.tabIndex = -1;
    return this.element;
  }

  private readonly _place = (): void => {
    const at = this._anchor.getBoundingClientRect();
    const own = this.element.getBoundingClientRect();
    const below = at.bottom + 2;
    const top = below + own.height <= window.innerHeight ? below : Math.max(4, at.top - own.height - 2);
    const left = Math.max(4, Math.min(at.left, window.innerWidth - own.width - 4));
    this.element.style.top = `${top}px`;
    this.element.style.left = `${left}px`;
  };

  private readonly _scrolled = (event: Event): void => {
    if (!(event.target instanceof Node && this.element.contains(event.target))) {
      this._place();
    }
  };

  private readonly _outside = (event: Event): void => {
    const path = event.composedPath();
    if (!this.busy && !path.includes(this.element) && !path.includes(this._anchor)) {
      this.close();
    }
  };

  /** Whether it has opened below `anchor`. */
  isBelow(anchor: HTMLElement): boolean {
    return this._anchor === anchor;
  }
}

/** Close those of which this is true. */
export function closePopups(which: (popup: Popup) => boolean): void {
  [...open].filter(which).forEach(popup => popup.close());
}

/** Whether a popup is open below `anchor`; closes it if so. A second click on a button closes its menu. */
export function closedAgain(anchor: HTMLElement): boolean {
  const expanded = anchor.getAttribute('aria-expanded') === 'true';
  closePopups(popup => expanded && !popup.busy && popup.isBelow(anchor));
  return expanded;
}

/** Open a menu; resolved when it is shown. */
export async function openMenu(
  home: HTMLElement,
  anchor: HTMLElement,
  label: string,
  items: MenuItem[] | (() => Promise<MenuItem[]> | MenuItem[]),
  closed?: () => void
): Promise<void> {
  if (closedAgain(anchor)) {
    return;
  }
  const popup = new Popup(home, anchor, label, closed);
  popup.element.setAttribute('role', 'menu');
  popup.element.addEventListener('keydown', event => move(popup.element, event));
  await fillMenu(popup, items);
}

async function fillMenu(
  popup: Popup,
  items: MenuItem[] | (() => Promise<MenuItem[]> | MenuItem[])
): Promise<void> {
  let list: MenuItem[];
  if (typeof items === 'function') {
    popup.fill(h('div', { class: 'vmlab-console-note' }, 'Loading …'));
    try {
      list = await items();
    } catch (error) {
      list = [{ label: error instanceof Error ? error.message : String(error), disabled: true }];
    }
  } else {
    list = items;
  }
  if (popup.element.isConnected) {
    popup.fill(...list.map(item => menuItem(popup, item)));
  }
}

function menuItem(popup: Popup, item: MenuItem): HTMLElement {
  const element = h('div', {
    class: item.separated ? 'vmlab-console-item vmlab-separated' : 'vmlab-console-item',
    role: item.checked === undefined ? 'menuitem' : 'menuitemcheckbox',
    tabindex: '-1',
    'aria-checked': item.checked === undefined ? undefined : String(item.checked),
    'aria-disabled': item.disabled ? 'true' : undefined,
    'aria-haspopup': item.items ? 'menu' : undefined,
    ...QUIET
  });
  if (item.picture) {
    const picture = h('img', { src: item.picture, alt: '', loading: 'lazy' });
    picture.addEventListener('error', () => picture.remove());
    element.append(picture);
  }
  const words = h('span', { class: 'vmlab-console-words' }, h('span', {}, item.label));
  if (item.note) {
    words.append(h('small', {}, item.note));
  }
  element.append(words);
  const choose = (): void => {
    if (item.disabled) {
      return;
    }
    if (item.items) {
      void fillMenu(popup, item.items);
    } else {
      popup.close();
      item.run?.();
    }
  };
  element.addEventListener('click', choose);
  element.addEventListener('keydown', event => {
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      choose();
    }
  });
  return element;
}

/** Arrow keys, Home and End in a menu. */
function move(menu: HTMLElement, event: KeyboardEvent): void {
  const all = [...menu.querySelectorAll<HTMLElement>('[role^=menuitem]:not([aria-disabled=true])')];
  const at = all.indexOf(document.activeElement as HTMLElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to !== undefined && all.length > 0) {
    event.preventDefault();
    all[(to + all.length) % all.length]?.focus();
  } else if (event.key === 'Tab') {
    event.preventDefault();
  }
}
