/** What a screen and a serial line have around them: the bar, the stage, what is said over it, notices. */
import { adoptStyle, h, keepKeys, QUIET } from './dom';
import { doingWords, type Help, type Words } from './faces';
import { icon } from './icons';
import { closePopups } from './popup';
import type { State } from './link';
import { Toolbar } from './toolbar';

const NOTICE_MS = 12_000;

export class Frame {
  readonly root: HTMLDivElement;
  readonly toolbar: Toolbar;
  /** Where the screen or the line is. It takes the focus while there is none, so that keys do not go astray. */
  readonly stage = h('div', { class: 'vmlab-console-stage', tabindex: '-1', ...QUIET });
  private readonly _overlay = h('div', { class: 'vmlab-console-overlay', hidden: true });
  private readonly _notice = h('div', { class: 'vmlab-console-notice', role: 'alert', hidden: true });
  private readonly _resize: ResizeObserver;
  /** Outside of what is read out: nobody wants to hear each second. */
  private readonly _countdown = h('div', { class: 'vmlab-console-detail' });
  private _said = '';
  private _forget: ReturnType<typeof setTimeout> | undefined;

  constructor(
    host: HTMLElement,
    private readonly _kind: 'vnc' | 'serial',
    private readonly _name: string,
    resized: () => void,
    /** Which keys are for whatever is around. */
    pass: (event: KeyboardEvent) => boolean
  ) {
    this.root = h('div', { class: `vmlab-console vmlab-console-${_kind}`, 'data-machine': _name });
    this.toolbar = new Toolbar(this.root, `Console of ${_name}`);
    this.toolbar.title.textContent = _name;
    this.toolbar.title.title = _name;
    this.root.append(this.toolbar.element, this.stage);
    this.stage.append(this._overlay, this._notice);
    keepKeys(this.root, pass);
    host.append(this.root);
    adoptStyle(host);
    this._resize = new ResizeObserver(() => {
      this.toolbar.resize(this.toolbar.element.clientWidth);
      resized();
    });
    this._resize.observe(this.root);
    this._resize.observe(this.stage);
  }

  /** Whether it is a small picture, which as a whole is the button that makes it large again. */
  set minimised(on: boolean) {
    const what = `${this._kind === 'serial' ? 'serial line' : 'screen'} of ${this._name}`;
    this.root.classList.toggle('vmlab-minimised', on);
    this.root.tabIndex = on ? 0 : -1;
    this.root.setAttribute('role', on ? 'button' : 'group');
    this.root.setAttribute(
      'aria-label',
      on ? `Restore the ${what}` : what.replace(/^s/, letter => letter.toUpperCase())
    );
    this.root.title = on ? `Restore ${this._name}` : '';
  }

  /** Show how things stand: the dot, the bar's status, what lies over the picture. */
  show(state: State, words: Words, status: string, help: (action: Help) => void): void {
    const { dot } = this.toolbar;
    dot.dataset.face = words.face;
    const name = words.face === 'live' ? 'running' : words.title || words.face;
    dot.setAttribute('aria-label', name);
    dot.title = name;
    this.root.dataset.face = words.face;
    const doing = state.doing !== null && words.face === 'live' ? doingWords(state.doing) : '';
    const said = doing || status;
    if (this.toolbar.status.textContent !== said) {
      this.toolbar.status.textContent = said;
    }
    const key = JSON.stringify([words.title, words.detail, words.help]);
    if (key !== this._said) {
      this._said = key;
      if (this._overlay.contains(document.activeElement)) {
        // The button that was pressed goes away; the next key must not get to the notebook.
        this.stage.focus({ preventScroll: true });
      }
      this._fill(words, help);
    }
    this._countdown.textContent = words.countdown;
    this._overlay.hidden = words.face === 'live';
  }

  /** Tell of something that went wrong, for some seconds. */
  notice(text: string, hint: string | null = null): void {
    const close = h(
      'button',
      { type: 'button', class: 'vmlab-console-button', 'aria-label': 'Dismiss', title: 'Dismiss', ...QUIET },
      icon('close')
    );
    close.addEventListener('click', () => this.hush());
    const words = h('span', {}, text);
    if (hint) {
      words.append(' ', h('small', {}, hint));
    }
    this._notice.replaceChildren(words, close);
    this._notice.hidden = false;
    clearTimeout(this._forget);
    this._forget = setTimeout(() => this.hush(), NOTICE_MS);
  }

  /** Take the notice away. */
  hush(): void {
    this._notice.hidden = true;
  }

  dispose(): void {
    clearTimeout(this._forget);
    closePopups(popup => this.root.contains(popup.element));
    this._resize.disconnect();
    this.root.remove();
  }

  private _fill(words: Words, help: (action: Help) => void): void {
    const box = h(
      'div',
      { class: 'vmlab-console-box' },
      h(
        'div',
        { role: 'status' },
        h('div', { class: 'vmlab-console-headline' }, words.title),
        h('div', { class: 'vmlab-console-detail' }, words.detail)
      ),
      this._countdown
    );
    if (words.help) {
      const { action, label } = words.help;
      const button = h('button', { type: 'button', class: 'vmlab-console-help', ...QUIET }, label);
      button.setAttribute('aria-label', `${label} (${this._name})`);
      button.addEventListener('click', () => help(action));
      box.append(button);
    }
    this._overlay.replaceChildren(box);
  }
}
