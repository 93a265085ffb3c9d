/** A row of small buttons; those that find no room are in a menu at its end. */
import { h, keepKeys, QUIET } from './dom';
import { icon, type IconName } from './icons';
import { type MenuItem, openMenu } from './popup';

export interface Tool {
  id: string;
  label: string;
  icon: IconName;
  /** the order in which tools keep their place when there is little room: low ones first */
  rank: number;
  run?: (anchor: HTMLElement) => void;
  menu?: () => Promise<MenuItem[]> | MenuItem[];
  /** for a switch: whether it is on */
  on?: boolean;
  hidden?: boolean;
  disabled?: boolean;
}

const BUTTON_PX = 26;

export class Toolbar {
  readonly element: HTMLDivElement;
  readonly dot = h('span', { class: 'vmlab-console-dot', role: 'img' });
  readonly title = h('span', { class: 'vmlab-console-title' });
  readonly status = h('span', { class: 'vmlab-console-status', 'aria-live': 'polite' });
  private readonly _tools = h('div', { class: 'vmlab-console-tools' });
  private _list: Tool[] = [];
  private _room = Infinity;
  private readonly _buttons = new Map<string, HTMLButtonElement>();
  private readonly _more: HTMLButtonElement;

  constructor(
    private readonly _home: HTMLElement,
    label: string
  ) {
    this.element = h(
      'div',
      { class: 'vmlab-console-bar', role: 'toolbar', 'aria-label': label },
      this.dot,
      this.title,
      this.status,
      this._tools
    );
    keepKeys(this.element);
    // Whoever works in the guest goes on there after a click in the bar.
    this.element.addEventListener('mousedown', event => event.preventDefault());
    this.element.addEventListener('keydown', event => this._move(event));
    this._more = this._button({ id: 'more', label: 'More', icon: 'more', rank: 0, menu: () => this._rest() });
  }

  /** Show these tools, in this order. */
  update(tools: Tool[]): void {
    this._list = tools.filter(tool => !tool.hidden);
    this._lay();
  }

  /** The width of the bar has changed. */
  resize(width: number): void {
    // The name and the state keep their room first.
    this._room = Math.max(1, Math.floor((width - Math.min(190, width * 0.45)) / BUTTON_PX));
    this._lay();
  }

  /** The button of a tool, or of the menu that it is in: where its popup opens. */
  anchor(id: string): HTMLElement {
    const button = this._buttons.get(id);
    return button?.isConnected ? button : this._more;
  }

  private get _shown(): Set<Tool> {
    if (this._list.length <= this._room) {
      return new Set(this._list);
    }
    const ranked = [...this._list].sort((a, b) => a.rank - b.rank);
    return new Set(ranked.slice(0, Math.max(0, this._room - 1)));
  }

  private _rest(): MenuItem[] {
    const shown = this._shown;
    return this._list
      .filter(tool => !shown.has(tool))
      .map(tool => ({
        label: tool.label,
        disabled: tool.disabled,
        checked: tool.on,
        items: tool.menu,
        run: () => tool.run?.(this._more)
      }));
  }

  private _lay(): void {
    const shown = this._shown;
    const focused = document.activeElement;
    const elements: HTMLElement[] = [];
    for (const tool of this._list) {
      if (shown.has(tool)) {
        elements.push(this._button(tool));
      }
    }
    if (shown.size < this._list.length) {
      elements.push(this._more);
    }
    const now = [...this._tools.children];
    if (now.length !== elements.length || now.some((element, index) => element !== elements[index])) {
      const had = this._tools.contains(focused);
      this._tools.replaceChildren(...elements);
      if (had) {
        ((focused?.isConnected ? focused : this._more) as HTMLElement).focus({ preventScroll: true });
      }
    }
    this._rove();
  }

  private _button(tool: Tool): HTMLButtonElement {
    let button = this._buttons.get(tool.id);
    if (!button) {
      button = h('button', { type: 'button', class: 'vmlab-console-button', 'data-tool': tool.id, ...QUIET });
      this._buttons.set(tool.id, button);
    }
    if (button.dataset.icon !== tool.icon) {
      button.dataset.icon = tool.icon;
      button.replaceChildren(icon(tool.icon));
    }
    const own = button;
    own.title = tool.label;
    own.setAttribute('aria-label', tool.label);
    own.setAttribute('aria-disabled', String(tool.disabled ?? false));
    if (tool.on !== undefined) {
      own.setAttribute('aria-pressed', String(tool.on));
    }
    if (tool.menu) {
      own.setAttribute('aria-haspopup', 'menu');
    }
    own.onclick = () => {
      if (tool.disabled) {
        return;
      }
      if (tool.menu) {
        void openMenu(this._home, own, tool.label, tool.menu);
      } else {
        tool.run?.(own);
      }
    };
    return own;
  }

  /** One stop for Tab, arrow keys inside, as the pattern for toolbars says. */
  private _rove(): void {
    const buttons = [...this._tools.querySelectorAll('button')];
    const current = buttons.find(button => button === document.activeElement) ?? buttons[0];
    for (const button of buttons) {
      button.tabIndex = button === current ? 0 : -1;
    }
  }

  private _move(event: KeyboardEvent): void {
    const buttons = [...this._tools.querySelectorAll('button')];
    const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at >= 0 && to !== undefined) {
      event.preventDefault();
      buttons[(to + buttons.length) % buttons.length]?.focus();
      this._rove();
    }
  }
}
