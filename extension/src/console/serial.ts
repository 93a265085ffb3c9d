/** The serial line of a machine: a terminal. */
import { FitAddon } from '@xterm/addon-fit';
import { type ITheme, Terminal } from '@xterm/xterm';
import xtermCss from '@xterm/xterm/css/xterm.css';
import { View } from './base';
import type { Channel, ChannelEvents } from './connection';
import { h } from './dom';
import { RELEASE } from './grip';
import type { Face } from './link';
import { openMenu } from './popup';
import type { Tool } from './toolbar';
import type { ConsoleOptions } from './types';

const SCROLLBACK_LINES = 5000;

export class SerialView extends View {
  private readonly _screen = h('div', { class: 'vmlab-console-terminal' });
  private readonly _terminal: Terminal;
  private readonly _fit = new FitAddon();
  private readonly _theme: MutationObserver;
  private _socket: WebSocket | null = null;
  private _replaying = false;
  /** Of the terminal, in px of the page, when it was not minimised. */
  private _size = { width: 720, height: 400 };

  constructor(host: HTMLElement, options: ConsoleOptions) {
    super(host, 'serial', options);
    const { root, stage } = this._frame;
    adoptXterm(root);
    stage.prepend(this._screen);
    this._terminal = new Terminal({
      scrollback: SCROLLBACK_LINES,
      cursorBlink: false,
      fontSize: 13,
      // The guest's own line ends are kept; most consoles send both characters.
      convertEol: false,
      // What guests write in bright colours is for a black ground.
      minimumContrastRatio: 4.5,
      theme: themeOf(root),
      fontFamily: fontOf(root)
    });
    this._terminal.loadAddon(this._fit);
    this._terminal.open(this._screen);
    const { textarea } = this._terminal;
    textarea?.setAttribute('data-lm-suppress-shortcuts', 'true');
    textarea?.setAttribute('aria-label', `Serial line of ${options.machine}`);
    // A terminal keeps Tab: who comes by Tab gets to the stage, and by Enter into the terminal. (A browser lets Tab get
    // to whatever can be scrolled, too.)
    for (const element of [textarea, this._screen.querySelector('.xterm-viewport')]) {
      element?.setAttribute('tabindex', '-1');
    }
    textarea?.addEventListener('focus', () => this._take());
    this._terminal.attachCustomKeyEventHandler(event => this._key(event));
    this._terminal.onData(data => this._send(data));
    this._terminal.onSelectionChange(() => this._update());
    this._screen.addEventListener('contextmenu', event => this._contextMenu(event));
    // JupyterLab changes its theme by attributes of the body and by another style sheet, which loads a little later.
    this._theme = new MutationObserver(() => setTimeout(() => this._repaint(), 200));
    this._theme.observe(document.body, {
      attributes: true,
      attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light']
    });
    this._begin(stage);
  }

  override dispose(): void {
    this._theme.disconnect();
    super.dispose();
    this._terminal.dispose();
  }

  protected override _open(channel: ChannelEvents): Channel {
    const socket = new WebSocket(this._url, ['binary']);
    socket.binaryType = 'arraybuffer';
    this._socket = socket;
    let first = true;
    socket.addEventListener('open', () => channel.opened());
    socket.addEventListener('message', event => {
      const { data } = event as MessageEvent<ArrayBuffer | string>;
      const text = typeof data === 'string' ? data : new Uint8Array(data);
      if (first) {
        // It begins with the end of the log, so what is there already would be there twice.
        first = false;
        this._terminal.reset();
        this._replaying = true;
        this._terminal.write(text, () => (this._replaying = false));
      } else {
        this._terminal.write(text);
      }
    });
    socket.addEventListener('close', event => channel.closed(event.code));
    return {
      close: () => {
        if (this._socket === socket) {
          this._socket = null;
        }
        socket.close();
      }
    };
  }

  private _send(data: string): void {
    // A shell asks its terminal where the cursor is, and the terminal answers as if somebody typed: what is in the log
    // was answered long ago, and of many who look at a line only the one who works in it may answer.
    if (this._held && !this._replaying && this._socket?.readyState === WebSocket.OPEN) {
      this._socket.send(new TextEncoder().encode(data));
    }
  }

  // -- copy and paste --------------------------------------------------------------------------------------------

  /** False: the terminal shall not see this key. */
  private _key(event: KeyboardEvent): boolean {
    if (event.type !== 'keydown') {
      return true;
    }
    if (event.key === 'Tab' && (this.readOnly || this._socket?.readyState !== WebSocket.OPEN)) {
      return false; // to the next thing on the page
    }
    const key = event.key.toLowerCase();
    const main = event.ctrlKey || event.metaKey;
    const copies = main && key === 'c' && (event.shiftKey || event.metaKey || this._terminal.hasSelection());
    if (copies && this._terminal.hasSelection()) {
      event.preventDefault();
      void this._copy();
      return false;
    }
    if (main && key === 'v' && (event.shiftKey || event.metaKey)) {
      event.preventDefault();
      void this._paste();
      return false;
    }
    return true;
  }

  private async _copy(): Promise<void> {
    const text = this._terminal.getSelection().trimEnd();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // No secure context: the old way, which needs a selection in the page.
      const area = h('textarea', { class: 'vmlab-console-offstage', 'aria-hidden': 'true' });
      area.value = text;
      this._frame.root.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    this._terminal.clearSelection();
    this._terminal.focus();
  }

  private async _paste(): Promise<void> {
    try {
      const text = await navigator.clipboard.readText();
      this._take();
      this._terminal.paste(text);
    } catch {
      this._frame.notice(
        'The browser does not let the page read the clipboard.',
        'Allow it for this page, or paste with Shift+Insert.'
      );
    }
    this._terminal.focus();
  }

  private _contextMenu(event: MouseEvent): void {
    if (event.shiftKey) {
      return; // the browser's own menu
    }
    event.preventDefault();
    event.stopPropagation();
    const anchor = h('span', { class: 'vmlab-console-point' });
    anchor.style.left = `${event.clientX}px`;
    anchor.style.top = `${event.clientY}px`;
    this._frame.root.append(anchor);
    void openMenu(
      this._frame.root,
      anchor,
      'Copy and paste',
      [
        {
          label: 'Copy',
          note: 'Ctrl+Shift+C',
          disabled: !this._terminal.hasSelection(),
          run: () => void this._copy()
        },
        { label: 'Paste', note: 'Ctrl+Shift+V', disabled: this.readOnly, run: () => void this._paste() },
        { label: 'Select all', separated: true, run: () => this._terminal.selectAll() },
        { label: 'Clear', run: () => this._terminal.clear() }
      ],
      () => anchor.remove()
    );
  }

  // -- how it looks ----------------------------------------------------------------------------------------------

  protected override _gave(held: boolean): void {
    if (held) {
      this._terminal.focus();
    } else {
      this._terminal.blur();
    }
  }

  protected override _layout(): void {
    const { stage } = this._frame;
    const { clientWidth: width, clientHeight: height } = stage;
    // Out of sight it has no size, and the terminal must not be made one of two columns.
    if (this._disposed || width === 0) {
      return;
    }
    const { style } = this._screen;
    if (this.minimised) {
      // As it was, but small.
      style.width = `${this._size.width}px`;
      style.height = `${this._size.height}px`;
      style.transform = `scale(${width / this._size.width})`;
    } else {
      style.cssText = '';
      this._size = { width, height };
      stage.style.setProperty('--vmlab-width', String(width));
      stage.style.setProperty('--vmlab-height', String(height));
      this._fit.fit();
    }
  }

  private _repaint(): void {
    if (!this._disposed) {
      this._terminal.options.theme = themeOf(this._frame.root);
    }
  }

  protected override _paint(face: Face): void {
    const { machine } = this._options;
    const { stage } = this._frame;
    this._terminal.options.disableStdin = this.readOnly;
    stage.tabIndex = this._held || this.minimised ? -1 : 0;
    stage.setAttribute('role', 'group');
    stage.setAttribute(
      'aria-label',
      this.readOnly
        ? `Serial line of ${machine}, view only`
        : `Serial line of ${machine}; Enter to type in it, ${RELEASE} gives the keyboard back`
    );
    if (this._held && face === 'live' && document.activeElement === stage) {
      this._terminal.focus();
    }
  }

  protected override _ownTools(): Tool[] {
    return [
      {
        id: 'copy',
        label: 'Copy the selection (Ctrl+Shift+C)',
        icon: 'copy',
        rank: 7,
        disabled: !this._terminal.hasSelection(),
        run: () => void this._copy()
      },
      {
        id: 'paste',
        label: 'Paste (Ctrl+Shift+V)',
        icon: 'type',
        rank: 6,
        disabled: this.readOnly,
        run: () => void this._paste()
      }
    ];
  }
}

function adoptXterm(root: HTMLElement): void {
  const tree = root.getRootNode();
  const place = tree instanceof ShadowRoot ? tree : document.head;
  if (!place.querySelector('style[data-vmlab-xterm]')) {
    place.append(h('style', { 'data-vmlab-xterm': true }, xtermCss));
  }
}

function themeOf(root: HTMLElement): ITheme {
  const style = getComputedStyle(root);
  return {
    background: style.getPropertyValue('--vmlab-terminal-background').trim(),
    foreground: style.getPropertyValue('--vmlab-terminal-text').trim(),
    cursor: style.getPropertyValue('--vmlab-terminal-text').trim(),
    selectionBackground: style.getPropertyValue('--vmlab-terminal-selection').trim()
  };
}

function fontOf(root: HTMLElement): string {
  return getComputedStyle(root).getPropertyValue('--jp-code-font-family').trim() || 'monospace';
}
