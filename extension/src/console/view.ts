/** The live screen of a machine. */
import { View } from './base';
import type { Channel, ChannelEvents } from './connection';
import { h, QUIET } from './dom';
import { askText } from './forms';
import { RELEASE } from './grip';
import { CHORDS, chord, type Key } from './keys';
import { runs } from './link';
import { Screen } from './rfb';
import { Thumbnail } from './thumbnail';
import { serverTypist, typeText, vncTypist } from './typing';
import type { Tool } from './toolbar';
import type { ConsoleOptions, Look, Mode } from './types';

/** What is assumed of a screen until it has been seen. */
const TEXT_SCREEN = { width: 720, height: 400 };
/** A resolution that lasts this long, in ms, changes the page. */
const PLACE_MS = 2000;

export class ConsoleView extends View {
  private readonly _thumbnail: Thumbnail;
  private _screen: Screen | null = null;
  private _size = TEXT_SCREEN;
  /** The screen that its place on the page has the shape of; see `_resized`. */
  private _place: typeof TEXT_SCREEN | null = null;
  private _placing: ReturnType<typeof setTimeout> | undefined;
  private _mode: Mode;

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

  constructor(host: HTMLElement, options: ConsoleOptions) {
    super(host, 'vnc', options);
    this._mode = options.mode ?? 'fit';
    this._thumbnail = new Thumbnail(this._still, options.machine, options.api);
    const { stage } = this._frame;
    stage.prepend(this._scroller);
    // A click in a tab of JupyterLab activates the tab first, which takes the shield away from under the mouse; the
    // browser then gives the focus to the stage.
    stage.addEventListener('focus', () => this._refocus());
    this._begin(this._shield);
  }

  override get look(): Look {
    return { ...super.look, mode: this._mode };
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

  override dispose(): void {
    clearTimeout(this._placing);
    this._thumbnail.show(false, false);
    super.dispose();
  }

  // -- the connection --------------------------------------------------------------------------------------------

  protected override _open(channel: ChannelEvents): Channel {
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
    screen.canvas.addEventListener('focus', () => this._take());
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
      this._thumbnail.stale = false;
    }
    if (document.activeElement === screen.canvas) {
      this._frame.stage.focus({ preventScroll: true });
    }
  }

  private _refocus(): void {
    if (this._held && this._screen?.painted && document.activeElement === this._frame.stage) {
      this._screen.focus();
    }
  }

  protected override _learned(): void {
    this._thumbnail.stale = true;
  }

  // -- keyboard and mouse ----------------------------------------------------------------------------------------

  protected override _gave(held: boolean): void {
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
  }

  private _grant(): void {
    if (this._screen) {
      this._screen.viewOnly = !(this._held || this._needed > 0) || this.readOnly;
    }
  }

  /** Press these keys together and let go; false if that cannot be. */
  private _press(keys: readonly Key[]): boolean {
    const screen = this._screen;
    if (!screen || this.readOnly) {
      return false;
    }
    const { viewOnly } = screen;
    screen.viewOnly = false;
    keys.forEach(key => screen.sendKey(key.keysym, key.code, true));
    [...keys].reverse().forEach(key => screen.sendKey(key.keysym, key.code, false));
    if (viewOnly) {
      screen.viewOnly = true;
    }
    return true;
  }

  private async _type(
    text: string,
    progress: (fraction: number) => void,
    signal: AbortSignal
  ): Promise<string[]> {
    const { api, machine } = this._options;
    const typist = api ? serverTypist(api, machine) : vncTypist(keys => this._press(keys));
    this._needed++;
    try {
      const { typed, total, left } = await typeText(text, typist, progress, signal);
      if (typed < total && !this._disposed) {
        this._frame.notice(`Stopped after ${typed} of ${total} characters.`);
      }
      return left;
    } finally {
      this._needed--;
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
  protected override _layout(): void {
    if (this._disposed) {
      return;
    }
    const { width, height } = this._size;
    const { stage } = this._frame;
    const place = this._place ?? this._size;
    stage.style.setProperty('--vmlab-width', String(place.width));
    stage.style.setProperty('--vmlab-height', String(place.height));
    const actual = this._mode === 'actual' && !this.minimised;
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

  protected override _paint(): void {
    const { machine } = this._options;
    this._shield.hidden = this._held || this.minimised;
    this._hint.textContent = this.readOnly ? 'View only' : 'Click to work in it';
    this._shield.setAttribute(
      'aria-label',
      this.readOnly
        ? `Screen of ${machine}, view only`
        : `Work in ${machine}; ${RELEASE} gives the keyboard back`
    );
    const { machine: state, doing } = this._connection.state;
    const possible = state !== null && runs(state) && doing === null;
    this._thumbnail.show(this.minimised && this._seen, possible);
    this._grant();
    this._refocus();
  }

  protected override _ownTools(): Tool[] {
    const { root } = this._frame;
    const cannot = this.readOnly || this._connection.state.link !== 'connected';
    return [
      {
        id: 'keys',
        label: 'Send keys',
        icon: 'keys',
        rank: 6,
        disabled: cannot,
        menu: () => CHORDS.map(name => ({ label: name, run: () => void this._press(chord(name)) }))
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
        id: 'mode',
        label: this._mode === 'actual' ? 'Fit to the space' : 'Actual size (1:1)',
        icon: this._mode === 'actual' ? 'fit' : 'actual',
        rank: 9,
        run: () => (this.mode = this._mode === 'actual' ? 'fit' : 'actual')
      }
    ];
  }
}
