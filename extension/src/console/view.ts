/** The live screen of a machine. */
import { Actions } from './actions';
import { type Channel, type ChannelEvents, Connection } from './connection';
import { h, QUIET } from './dom';
import { words } from './faces';
import { askText } from './forms';
import { Frame } from './frame';
import { Grip, RELEASE } from './grip';
import { CHORDS, chord, type Key } from './keys';
import { face } from './link';
import { Screen } from './rfb';
import { watchSeen } from './seen';
import { Thumbnail } from './thumbnail';
import { serverTypist, typeText, vncTypist } from './typing';
import type { Tool } from './toolbar';
import type { ConsoleOptions, Mode } from './types';

/** What is assumed of a screen until it has been seen. */
const TEXT_SCREEN = { width: 720, height: 400 };
/** A resolution that lasts this long, in ms, changes the page. */
const PLACE_MS = 2000;

export class ConsoleView {
  private readonly _frame: Frame;
  private readonly _connection: Connection;
  private readonly _actions: Actions | null;
  private readonly _grip: Grip;
  private readonly _thumbnail: Thumbnail;
  private readonly _unwatch: () => void;
  private _screen: Screen | null = null;
  private _size = TEXT_SCREEN;
  /** The screen that its place on the page has the shape of; see `_resized`. */
  private _place: typeof TEXT_SCREEN | null = null;
  private _placing: ReturnType<typeof setTimeout> | undefined;
  private _mode: Mode;
  private _readOnly: boolean;
  private _minimised: boolean;
  private _seen = true;
  /** pieces of text on their way: the connection must stay */
  private _typing = 0;
  private _ticking: ReturnType<typeof setInterval> | undefined;
  private _disposed = false;

  /** The last picture. It lies over the screen until the next connection has one. */
  private readonly _still = h('canvas', {
    class: 'vmlab-console-still',
    hidden: true,
    'aria-hidden': 'true'
  });
  private readonly _target = h('div', { class: 'vmlab-console-screen' });
  private readonly _hint = h('span', { class: 'vmlab-console-hint' });
  private readonly _shield = h(
    'div',
    { class: 'vmlab-console-shield', role: 'button', tabindex: '0', ...QUIET },
    this._hint
  );
  private readonly _picture = h(
    'div',
    { class: 'vmlab-console-picture' },
    this._target,
    this._still,
    this._shield
  );
  private readonly _scroller = h('div', { class: 'vmlab-console-scroller' }, this._picture);

  constructor(
    host: HTMLElement,
    private readonly _options: ConsoleOptions
  ) {
    const { machine, api, events } = _options;
    this._mode = _options.mode ?? 'fit';
    this._readOnly = _options.readOnly ?? false;
    this._minimised = _options.minimised ?? false;
    this._frame = new Frame(host, 'vnc', machine, () => this._layout());
    const { root, stage } = this._frame;
    stage.prepend(this._scroller);
    this._actions =
      api && _options.actions !== false
        ? new Actions(api, machine, this._frame, () => this._connection)
        : null;
    this._connection = new Connection({
      machine,
      api,
      events,
      wanted: !this._minimised,
      open: channel => this._open(channel),
      changed: () => this._update(),
      learned: model => {
        this._actions?.update(model);
        this._update();
      }
    });
    this._grip = new Grip({ root, stage, shield: this._shield, changed: held => this._gripped(held) });
    this._thumbnail = new Thumbnail(this._still, machine, api);
    this._unwatch = watchSeen(root, seen => {
      this._seen = seen;
      this._want();
    });
    // A click in a tab of JupyterLab activates the tab first, which takes the shield away from under the mouse; the
    // browser then gives the focus to the stage.
    stage.addEventListener('focus', () => this._refocus());
    root.addEventListener('click', this._restore);
    root.addEventListener('keydown', this._restoreByKey);
    document.addEventListener('fullscreenchange', this._fullScreenChanged);
    this._want();
    this._update();
    this._layout();
  }

  get mode(): Mode {
    return this._mode;
  }

  set mode(mode: Mode) {
    if (mode !== this._mode) {
      this._mode = mode;
      this._layout();
      this._update();
      this._options.changed?.({ mode });
    }
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
      this._minimised = minimised;
      this._grip.release();
      this._want();
      this._update();
      this._layout();
      this._options.changed?.({ minimised });
    }
  }

  /** Give the guest keyboard and mouse, as a click does. */
  focus(): void {
    if (!this._readOnly && !this._minimised) {
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
    clearTimeout(this._placing);
    this._unwatch();
    this._grip.dispose();
    this._thumbnail.dispose();
    this._connection.dispose();
    document.removeEventListener('fullscreenchange', this._fullScreenChanged);
    this._frame.dispose();
  }

  // -- the connection --------------------------------------------------------------------------------------------

  private get _url(): string {
    if (this._options.wsUrl !== undefined) {
      return new URL(this._options.wsUrl, location.href).href;
    }
    const { baseUrl, machine } = this._options;
    const url = new URL(`${baseUrl}vmlab/consoles/${encodeURIComponent(machine)}/vnc`, location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    return url.href;
  }

  private _open(channel: ChannelEvents): Channel {
    const screen = new Screen(this._target, this._url, {
      opened: channel.opened,
      painted: () => {
        this._still.hidden = true;
        this._update();
        this._refocus();
      },
      resized: (width, height) => this._resized(width, height),
      closed: code => {
        this._keepStill(screen);
        channel.closed(code);
      }
    });
    this._screen = screen;
    screen.canvas.setAttribute('aria-label', `Screen of ${this._options.machine}`);
    screen.canvas.addEventListener('focus', () => {
      if (!this._readOnly) {
        this._grip.take();
      }
    });
    screen.canvas.addEventListener('blur', () => screen.releaseKeys());
    this._grant();
    return {
      close: () => {
        this._keepStill(screen);
        screen.close();
      }
    };
  }

  /** Before the screen goes: keep its last picture, and the focus inside, so that no key gets to the notebook. */
  private _keepStill(screen: Screen): void {
    if (screen !== this._screen) {
      return;
    }
    this._screen = null;
    if (screen.copyTo(this._still)) {
      this._still.hidden = false;
    }
    if (document.activeElement === screen.canvas) {
      this._frame.stage.focus({ preventScroll: true });
    }
  }

  private _refocus(): void {
    if (this._grip.held && this._screen?.painted && document.activeElement === this._frame.stage) {
      this._screen.focus();
    }
  }

  private _want(): void {
    const wanted = (this._seen || this._typing > 0) && !this._minimised;
    this._connection.tell({ type: 'wanted', wanted });
    this._thumbnail.refresh(this._minimised && this._seen);
  }

  // -- keyboard and mouse ----------------------------------------------------------------------------------------

  private _gripped(held: boolean): void {
    if (held && this._readOnly) {
      this._grip.release();
      return;
    }
    this._grant();
    if (held) {
      if (this._screen) {
        this._screen.focus();
      } else {
        this._frame.stage.focus({ preventScroll: true });
      }
    } else if (this._screen && document.activeElement === this._screen.canvas) {
      this._screen.canvas.blur();
    }
    this._update();
  }

  private _grant(): void {
    if (this._screen) {
      this._screen.viewOnly = !(this._grip.held || this._typing > 0) || this._readOnly;
    }
  }

  /** Press these keys together and let go. */
  private _press(keys: readonly Key[]): void {
    const screen = this._screen;
    if (!screen || this._readOnly) {
      return;
    }
    const { viewOnly } = screen;
    screen.viewOnly = false;
    keys.forEach(key => screen.sendKey(key.keysym, key.code, true));
    [...keys].reverse().forEach(key => screen.sendKey(key.keysym, key.code, false));
    if (viewOnly) {
      screen.viewOnly = true;
    }
  }

  private async _type(
    text: string,
    progress: (fraction: number) => void,
    signal: AbortSignal
  ): Promise<string[]> {
    const { api, machine } = this._options;
    const typist = api ? serverTypist(api, machine) : vncTypist(keys => this._press(keys));
    this._typing++;
    try {
      return await typeText(text, typist, progress, signal);
    } finally {
      this._typing--;
      if (!this._disposed) {
        this._grant();
        this._want();
      }
    }
  }

  // -- how it looks ----------------------------------------------------------------------------------------------

  private _resized(width: number, height: number): void {
    if (width <= 0 || height <= 0) {
      return;
    }
    this._size = { width, height };
    // A guest that boots goes through several resolutions, and QEMU shows one of its own before the guest's first. The
    // page must not jump up and down with them: the picture takes the place that is there, which follows a little later.
    clearTimeout(this._placing);
    if (this._place === null) {
      this._place = this._size;
    } else {
      this._placing = setTimeout(() => {
        this._place = this._size;
        this._layout();
      }, PLACE_MS);
    }
    this._layout();
  }

  /** Give the picture its size; noVNC fills what it is given, so that places on the screen are exact. */
  private _layout(): void {
    if (this._disposed) {
      return;
    }
    const { width, height } = this._size;
    const { stage } = this._frame;
    const place = this._place ?? this._size;
    stage.style.setProperty('--vmlab-width', String(place.width));
    stage.style.setProperty('--vmlab-height', String(place.height));
    const actual = this._mode === 'actual' && !this._minimised;
    this._frame.root.classList.toggle('vmlab-actual', actual);
    const room = this._scroller.getBoundingClientRect();
    let scale = actual ? 1 : Math.min(room.width / width, room.height / height);
    if (scale <= 0) {
      return;
    }
    // Whole pixels are sharp; a screen that is a few pixels smaller than it could be is better than a blurred one.
    const pixels = scale * devicePixelRatio;
    const whole = Math.floor(pixels);
    if (whole >= 1 && pixels - whole < 0.04) {
      scale = whole / devicePixelRatio;
    }
    // No fractions: a browser would round the edge one way to paint and another way to tell where the mouse is.
    this._picture.style.width = `${Math.floor(width * scale)}px`;
    this._picture.style.height = `${Math.floor(height * scale)}px`;
    const sharp =
      Math.abs(scale * devicePixelRatio - Math.round(scale * devicePixelRatio)) < 0.001 && scale > 0.99;
    this._picture.style.imageRendering = sharp ? 'pixelated' : 'auto';
  }

  private _update(): void {
    if (this._disposed) {
      return;
    }
    const { state } = this._connection;
    const { machine, api } = this._options;
    const said = words(state, machine, api !== undefined, Date.now());
    const { root, toolbar } = this._frame;
    const held = this._grip.held;
    root.classList.toggle('vmlab-held', held);
    root.classList.toggle('vmlab-minimised', this._minimised);
    root.classList.toggle('vmlab-full', document.fullscreenElement === root);
    this._shield.hidden = held || this._minimised;
    this._hint.textContent = this._readOnly ? 'View only' : 'Click to work in it';
    this._shield.setAttribute(
      'aria-label',
      this._readOnly
        ? `Screen of ${machine}, view only`
        : `Work in ${machine}; ${RELEASE} gives the keyboard back`
    );
    root.tabIndex = this._minimised ? 0 : -1;
    if (this._minimised) {
      root.title = `Restore ${machine}`;
    } else {
      root.removeAttribute('title');
    }
    const status = held && said.face === 'live' ? `${RELEASE} to leave` : this._readOnly ? 'view only' : '';
    this._frame.show(state, said, status, action => this._help(action));
    toolbar.update(this._tools());
    this._refocus();
    this._count(state.retryAt !== null && ['waiting', 'unreachable', 'hypervisor'].includes(face(state)));
  }

  /** Count down the seconds until the next attempt. */
  private _count(on: boolean): void {
    if (on && this._ticking === undefined) {
      this._ticking = setInterval(() => this._update(), 1000);
    } else if (!on) {
      clearInterval(this._ticking);
      this._ticking = undefined;
    }
  }

  private _help(action: 'start' | 'resume' | 'kill' | 'retry'): void {
    if (this._actions) {
      this._actions.help(action);
    } else {
      this._connection.tell({ type: 'retry' });
    }
  }

  private _tools(): Tool[] {
    const { root } = this._frame;
    const live = this._connection.state.link === 'connected';
    const full = document.fullscreenElement === root;
    const cannot = this._readOnly || !live;
    return [
      ...(this._actions && !this._readOnly ? this._actions.tools() : []),
      {
        id: 'keys',
        label: 'Send keys',
        icon: 'keys',
        rank: 6,
        disabled: cannot,
        menu: () => CHORDS.map(name => ({ label: name, run: () => this._press(chord(name)) }))
      },
      {
        id: 'type',
        label: 'Type text …',
        icon: 'type',
        rank: 7,
        disabled: cannot,
        run: anchor => askText(root, anchor, (text, progress, signal) => this._type(text, progress, signal))
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
        id: 'mode',
        label: this._mode === 'actual' ? 'Fit to the space' : 'Actual size (1:1)',
        icon: this._mode === 'actual' ? 'fit' : 'actual',
        rank: 9,
        run: () => (this.mode = this._mode === 'actual' ? 'fit' : 'actual')
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

  private readonly _restore = (event: Event): void => {
    if (this._minimised && !(event.target as Element).closest('button')) {
      this.minimised = false;
    }
  };

  private readonly _restoreByKey = (event: KeyboardEvent): void => {
    if (this._minimised && (event.key === 'Enter' || event.key === ' ')) {
      event.preventDefault();
      this.minimised = false;
    }
  };
}
