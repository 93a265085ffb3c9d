/** The serial line of a machine: a terminal. */
import { FitAddon } from '@xterm/addon-fit';
import { type ITheme, Terminal } from '@xterm/xterm';
import xtermCss from '@xterm/xterm/css/xterm.css';
import { Actions } from './actions';
import { type Channel, type ChannelEvents, Connection } from './connection';
import { h } from './dom';
import { words } from './faces';
import { Frame } from './frame';
import { face } from './link';
import { openMenu } from './popup';
import { watchSeen } from './seen';
import type { Tool } from './toolbar';
import type { ConsoleOptions } from './types';

const SCROLLBACK_LINES = 5000;

export type SerialOptions = Pick<
  ConsoleOptions,
  'machine' | 'baseUrl' | 'api' | 'events' | 'wsUrl' | 'readOnly' | 'popOut' | 'actions' | 'changed'
>;

export class SerialView {
  private readonly _frame: Frame;
  private readonly _terminal: Terminal;
  private readonly _fit = new FitAddon();
  private readonly _connection: Connection;
  private readonly _actions: Actions | null;
  private readonly _unwatch: () => void;
  private readonly _theme: MutationObserver;
  private _socket: WebSocket | null = null;
  private _readOnly: boolean;
  private _ticking: ReturnType<typeof setInterval> | undefined;
  private _disposed = false;

  constructor(
    host: HTMLElement,
    private readonly _options: SerialOptions
  ) {
    const { machine, api, events } = _options;
    this._readOnly = _options.readOnly ?? false;
    this._frame = new Frame(host, 'serial', machine, () => this._layout());
    const { root, stage } = this._frame;
    adoptXterm(root);
    const screen = h('div', { class: 'vmlab-console-terminal' });
    stage.prepend(screen);
    this._terminal = new Terminal({
      scrollback: SCROLLBACK_LINES,
      cursorBlink: false,
      fontSize: 13,
      // The guest's own line ends are kept; most consoles send both characters.
      convertEol: false,
      disableStdin: this._readOnly,
      theme: themeOf(root),
      fontFamily: fontOf(root)
    });
    this._terminal.loadAddon(this._fit);
    this._terminal.open(screen);
    this._terminal.textarea?.setAttribute('data-lm-suppress-shortcuts', 'true');
    this._terminal.textarea?.setAttribute('aria-label', `Serial line of ${machine}`);
    this._terminal.attachCustomKeyEventHandler(event => this._key(event));
    this._terminal.onData(data => this._send(data));
    this._terminal.onSelectionChange(() => this._update());
    screen.addEventListener('contextmenu', event => this._contextMenu(event));
    this._actions =
      api && _options.actions !== false
        ? new Actions(api, machine, this._frame, () => this._connection)
        : null;
    this._connection = new Connection({
      machine,
      api,
      events,
      wanted: true,
      open: channel => this._open(channel),
      changed: () => this._update(),
      learned: model => {
        this._actions?.update(model);
        this._update();
      }
    });
    this._unwatch = watchSeen(root, seen => this._connection.tell({ type: 'wanted', wanted: seen }));
    // JupyterLab changes its theme by attributes of the body and by another style sheet, which loads a little later.
    this._theme = new MutationObserver(() => setTimeout(() => this._repaint(), 200));
    this._theme.observe(document.body, {
      attributes: true,
      attributeFilter: ['data-jp-theme-name', 'data-jp-theme-light']
    });
    this._update();
    this._layout();
  }

  get readOnly(): boolean {
    return this._readOnly;
  }

  set readOnly(readOnly: boolean) {
    if (readOnly !== this._readOnly) {
      this._readOnly = readOnly;
      this._terminal.options.disableStdin = readOnly;
      this._update();
      this._options.changed?.({ readOnly });
    }
  }

  focus(): void {
    this._terminal.focus();
  }

  dispose(): void {
    if (this._disposed) {
      return;
    }
    this._disposed = true;
    clearInterval(this._ticking);
    this._unwatch();
    this._theme.disconnect();
    this._connection.dispose();
    this._terminal.dispose();
    this._frame.dispose();
  }

  private get _url(): string {
    if (this._options.wsUrl !== undefined) {
      return new URL(this._options.wsUrl, location.href).href;
    }
    const { baseUrl, machine } = this._options;
    const url = new URL(`${baseUrl}vmlab/consoles/${encodeURIComponent(machine)}/serial`, location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    return url.href;
  }

  private _open(channel: ChannelEvents): Channel {
    const socket = new WebSocket(this._url, ['binary']);
    socket.binaryType = 'arraybuffer';
    this._socket = socket;
    let first = true;
    socket.addEventListener('open', () => channel.opened());
    socket.addEventListener('message', event => {
      if (first) {
        // It begins with the end of the log, so what is there already would be there twice.
        first = false;
        this._terminal.reset();
      }
      const { data } = event as MessageEvent<ArrayBuffer | string>;
      this._terminal.write(typeof data === 'string' ? data : new Uint8Array(data));
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
    if (!this._readOnly && this._socket?.readyState === WebSocket.OPEN) {
      this._socket.send(new TextEncoder().encode(data));
    }
  }

  // -- copy and paste --------------------------------------------------------------------------------------------

  /** False: the terminal shall not see this key. */
  private _key(event: KeyboardEvent): boolean {
    if (event.type !== 'keydown') {
      return true;
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
      this._terminal.paste(await navigator.clipboard.readText());
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
        { label: 'Paste', note: 'Ctrl+Shift+V', disabled: this._readOnly, run: () => void this._paste() },
        { label: 'Select all', separated: true, run: () => this._terminal.selectAll() },
        { label: 'Clear', run: () => this._terminal.clear() }
      ],
      () => anchor.remove()
    );
  }

  // -- how it looks ----------------------------------------------------------------------------------------------

  private _layout(): void {
    // Out of sight it has no size, and the terminal must not be made one of two columns.
    if (!this._disposed && this._frame.stage.clientWidth > 0) {
      this._fit.fit();
    }
  }

  private _repaint(): void {
    if (!this._disposed) {
      this._terminal.options.theme = themeOf(this._frame.root);
    }
  }

  private _update(): void {
    if (this._disposed) {
      return;
    }
    const { state } = this._connection;
    const said = words(state, this._options.machine, this._options.api !== undefined, Date.now());
    this._frame.show(state, said, this._readOnly ? 'view only' : '', action => {
      if (this._actions) {
        this._actions.help(action);
      } else {
        this._connection.tell({ type: 'retry' });
      }
    });
    this._frame.toolbar.update(this._tools());
    if (said.face === 'live' && document.activeElement === this._frame.stage) {
      this._terminal.focus();
    }
    const counting = state.retryAt !== null && ['waiting', 'unreachable', 'hypervisor'].includes(face(state));
    if (counting && this._ticking === undefined) {
      this._ticking = setInterval(() => this._update(), 1000);
    } else if (!counting) {
      clearInterval(this._ticking);
      this._ticking = undefined;
    }
  }

  private _tools(): Tool[] {
    return [
      ...(this._actions && !this._readOnly ? this._actions.tools() : []),
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
        disabled: this._readOnly,
        run: () => void this._paste()
      },
      {
        id: 'lock',
        label: 'View only',
        icon: this._readOnly ? 'lock' : 'unlock',
        rank: 12,
        on: this._readOnly,
        run: () => (this.readOnly = !this._readOnly)
      },
      {
        id: 'popout',
        label: 'Open in a tab of its own',
        icon: 'popOut',
        rank: 11,
        hidden: this._options.popOut === undefined,
        run: () => this._options.popOut?.()
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
