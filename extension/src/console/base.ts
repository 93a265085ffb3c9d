/** What a screen and a serial line have in common. */
import { Actions } from './actions';
import { type Channel, type ChannelEvents, Connection } from './connection';
import { presses, setQuiet } from './dom';
import { words } from './faces';
import { Frame } from './frame';
import { Grip, RELEASE } from './grip';
import type { Face } from './link';
import { watchSeen } from './seen';
import type { Tool } from './toolbar';
import type { ConsoleOptions, Look } from './types';

export abstract class View {
  protected readonly _frame: Frame;
  protected readonly _connection: Connection;
  protected _seen = true;
  /** pieces of work that need the connection, whether or not somebody sees it */
  protected _needed = 0;
  protected _disposed = false;
  private readonly _actions: Actions | null;
  private _grip!: Grip;
  private _handle!: HTMLElement;
  private _readOnly: boolean;
  private _minimised: boolean;
  private _ticking: ReturnType<typeof setInterval> | undefined;
  private _unwatch = (): void => undefined;

  constructor(
    host: HTMLElement,
    private readonly _kind: 'vnc' | 'serial',
    protected readonly _options: ConsoleOptions
  ) {
    const { machine, api, events, readOnly = false, minimised = false } = _options;
    this._readOnly = readOnly;
    this._minimised = minimised;
    this._frame = new Frame(
      host,
      _kind,
      machine,
      () => this._layout(),
      event => this._isFree && !presses(event)
    );
    this._actions = api ? new Actions(api, machine, this._frame, () => this._connection) : null;
    this._connection = new Connection({
      machine,
      api,
      events,
      wanted: !minimised,
      open: channel => this._open(channel),
      changed: () => this._update(),
      learned: model => {
        this._actions?.update(model);
        this._learned();
        this._update();
      }
    });
  }

  /** The last step of making one: `handle` is what is clicked to work in the guest. */
  protected _begin(handle: HTMLElement): void {
    const { root, stage } = this._frame;
    this._handle = handle;
    this._grip = new Grip({ root, stage, handle, changed: held => this._gripped(held) });
    this._unwatch = watchSeen(root, seen => {
      this._seen = seen;
      this._want();
      this._update();
    });
    root.addEventListener('click', event => {
      if (this._minimised && !(event.target as Element).closest('button')) {
        this.minimised = false;
      }
    });
    root.addEventListener('keydown', event => {
      if (this._minimised && presses(event)) {
        event.preventDefault();
        this.minimised = false;
      }
    });
    for (const type of ['focusin', 'focusout']) {
      root.addEventListener(type, () => this._hush());
    }
    document.addEventListener('fullscreenchange', this._fullScreenChanged);
    this._want();
    this._update();
    this._layout();
  }

  /** How it is shown now; options of another view that shall look the same. */
  get look(): Look {
    return { readOnly: this._readOnly, minimised: this._minimised };
  }

  get readOnly(): boolean {
    return this._readOnly;
  }

  set readOnly(readOnly: boolean) {
    if (readOnly !== this._readOnly) {
      this._readOnly = readOnly;
      if (readOnly) {
        this._grip.release();
      }
      this._update();
      this._options.changed?.({ readOnly });
    }
  }

  get minimised(): boolean {
    return this._minimised;
  }

  set minimised(minimised: boolean) {
    if (minimised !== this._minimised) {
      const { root } = this._frame;
      const inside = root.contains(document.activeElement);
      this._minimised = minimised;
      this._grip.release();
      this._want();
      this._update();
      this._layout();
      if (inside) {
        (minimised ? root : this._handle).focus({ preventScroll: true });
      }
      this._options.changed?.({ minimised });
    }
  }

  /** Give the guest keyboard and mouse, as a click does; where it cannot have them, the console has the focus. */
  focus(): void {
    if (this._minimised) {
      this._frame.root.focus({ preventScroll: true });
    } else if (this._readOnly) {
      this._handle.focus({ preventScroll: true });
    } else {
      this._grip.take();
    }
  }

  /** End the connection and take everything out of the page. */
  dispose(): void {
    if (this._disposed) {
      return;
    }
    this._disposed = true;
    clearInterval(this._ticking);
    document.removeEventListener('fullscreenchange', this._fullScreenChanged);
    this._unwatch();
    this._grip.dispose();
    this._connection.dispose();
    this._frame.dispose();
  }

  // -- what differs ----------------------------------------------------------------------------------------------

  protected abstract _open(channel: ChannelEvents): Channel;

  /** Give it the size for which there is room. */
  protected abstract _layout(): void;

  /** Show how things stand, apart from the frame. */
  protected abstract _paint(face: Face): void;

  /** The guest has got the keyboard, or lost it: move the focus. */
  protected abstract _gave(held: boolean): void;

  protected abstract _ownTools(): Tool[];

  /** The server has told how the machine is. */
  protected _learned(): void {}

  // -- the connection --------------------------------------------------------------------------------------------

  protected get _url(): string {
    const { wsUrl, baseUrl, machine } = this._options;
    const path = `${baseUrl}vmlab/consoles/${encodeURIComponent(machine)}/${this._kind}`;
    const url = new URL(wsUrl ?? path, location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    return url.href;
  }

  /** Tell the connection whether anybody wants it. */
  protected _want(): void {
    const wanted = (this._seen || this._needed > 0) && !this._minimised;
    this._connection.tell({ type: 'wanted', wanted });
  }

  // -- keyboard and mouse ----------------------------------------------------------------------------------------

  /** Whether keyboard and mouse are the guest's. */
  protected get _held(): boolean {
    return this._grip.held;
  }

  /**
   * Whether the keyboard waits at the console, and the guest has let go: its keys are for whatever is around then. Not so
   * where it can only be looked at: who types there believes to type in the guest.
   */
  private get _isFree(): boolean {
    const { activeElement } = document;
    return this._minimised
      ? activeElement === this._frame.root
      : activeElement === this._handle && !this._held && !this._readOnly;
  }

  private _hush(): void {
    const free = this._isFree;
    setQuiet(this._handle, !free);
    setQuiet(this._frame.stage, !free);
  }

  protected _take(): void {
    if (!this._readOnly) {
      this._grip.take();
    }
  }

  private _gripped(held: boolean): void {
    if (held && this._readOnly) {
      this._grip.release();
      return;
    }
    this._gave(held);
    this._update();
  }

  // -- how it looks ----------------------------------------------------------------------------------------------

  protected _update(): void {
    if (this._disposed) {
      return;
    }
    const { state } = this._connection;
    const { machine, api } = this._options;
    const said = words(state, machine, api !== undefined && !this._readOnly, Date.now());
    const { root, toolbar } = this._frame;
    root.classList.toggle('vmlab-held', this._held);
    root.classList.toggle('vmlab-full', document.fullscreenElement === root);
    this._frame.minimised = this._minimised;
    const leave = this._held && said.face === 'live';
    const status = leave ? `${RELEASE} to leave` : this._readOnly ? 'view only' : '';
    this._frame.show(state, said, status, action => {
      if (this._actions) {
        this._actions.help(action);
      } else {
        this._connection.tell({ type: 'retry' });
      }
    });
    toolbar.update(this._tools());
    this._paint(said.face);
    this._hush();
    // Count down the seconds until the next attempt.
    const counting = state.retryAt !== null && said.countdown !== '';
    if (!counting) {
      clearInterval(this._ticking);
      this._ticking = undefined;
    } else {
      this._ticking ??= setInterval(() => this._update(), 1000);
    }
  }

  private _tools(): Tool[] {
    const full = document.fullscreenElement === this._frame.root;
    return [
      ...(this._actions && !this._readOnly ? this._actions.tools() : []),
      ...this._ownTools(),
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
      },
      {
        id: 'full',
        label: full ? 'Leave full screen' : 'Full screen',
        icon: 'full',
        rank: 10,
        hidden: !document.fullscreenEnabled,
        run: () => void this._fullScreen(!full)
      },
      {
        id: 'minimise',
        label: 'Minimise',
        icon: 'minimise',
        rank: 1,
        hidden: full,
        run: () => (this.minimised = true)
      }
    ];
  }

  private async _fullScreen(on: boolean): Promise<void> {
    try {
      await (on ? this._frame.root.requestFullscreen() : document.exitFullscreen());
    } catch {
      this._frame.notice('The browser does not allow full screen here.');
    }
  }

  private readonly _fullScreenChanged = (): void => {
    const { keyboard } = navigator as Navigator & { keyboard?: { lock(): Promise<void>; unlock(): void } };
    if (document.fullscreenElement === this._frame.root) {
      // Where the browser can: Escape, Alt+Tab and the like go to the guest; Escape held down leaves full screen.
      keyboard?.lock().catch(() => undefined);
    } else if (document.fullscreenElement === null) {
      keyboard?.unlock();
    }
    this._update();
    this._layout();
  };
}
