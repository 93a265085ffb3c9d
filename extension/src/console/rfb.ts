/** One VNC connection and its picture. The only module that imports noVNC. */
import RFB from '@novnc/novnc';

export interface ScreenEvents {
  /** the connection stands; the picture follows */
  opened(): void;
  /** the first picture is there */
  painted(): void;
  /** the guest has changed its resolution */
  resized(width: number, height: number): void;
  /** the connection has ended; once, and not after `close()` */
  closed(code: number): void;
}

/** A picture must come by then, in ms; what comes later counts as having come. */
const PAINT_MS = 3000;

export class Screen {
  private readonly _rfb: RFB;
  private readonly _canvas: HTMLCanvasElement;
  private readonly _watch: MutationObserver;
  private readonly _held = new Set<string>();
  private _painted = false;
  private _over = false;

  constructor(target: HTMLElement, url: string, events: ScreenEvents) {
    const socket = new WebSocket(url, ['binary']);
    // noVNC tells of an end only whether it was clean. This listener is there before noVNC's own, so that the picture
    // can still be copied and the focus moved before noVNC takes its canvas out of the page.
    socket.addEventListener('close', event => {
      if (!this._over) {
        this._over = true;
        events.closed(event.code);
      }
    });
    this._rfb = new RFB(target, socket, { shared: true });
    this._rfb.scaleViewport = true;
    this._rfb.resizeSession = false;
    this._rfb.viewOnly = true;
    this._rfb.focusOnClick = true;
    this._rfb.showDotCursor = true;
    this._rfb.background = 'transparent';
    const canvas = target.lastElementChild?.querySelector('canvas');
    if (!canvas) {
      throw new Error('noVNC has made no canvas.');
    }
    this._canvas = canvas;
    this._canvas.tabIndex = -1;
    // JupyterLab looks for this on the element that has the focus, not on its parents.
    this._canvas.setAttribute('data-lm-suppress-shortcuts', 'true');
    this._canvas.setAttribute('role', 'application');
    this._canvas.addEventListener('keydown', event => this._held.add(event.code), true);
    this._canvas.addEventListener('keyup', event => this._held.delete(event.code), true);
    this._rfb.addEventListener('connect', () => {
      events.opened();
      events.resized(this._canvas.width, this._canvas.height);
      this._onPaint(() => events.painted());
    });
    // noVNC has no event for a change of the resolution, but its canvas follows it.
    this._watch = new MutationObserver(() => {
      if (!this._over && this._canvas.width > 0) {
        events.resized(this._canvas.width, this._canvas.height);
      }
    });
    this._watch.observe(this._canvas, { attributes: true, attributeFilter: ['width', 'height'] });
  }

  get canvas(): HTMLCanvasElement {
    return this._canvas;
  }

  /** Whether the picture is one that the guest has sent. */
  get painted(): boolean {
    return this._painted;
  }

  get viewOnly(): boolean {
    return this._rfb.viewOnly;
  }

  set viewOnly(on: boolean) {
    if (on) {
      // First: noVNC sends nothing more once it only views, not even that the keys are up again.
      this.releaseKeys();
    }
    this._rfb.viewOnly = on;
  }

  focus(): void {
    this._rfb.focus({ preventScroll: true });
  }

  /** Send one key going down or up; `code` as in `KeyboardEvent.code`. */
  sendKey(keysym: number, code: string | null, down: boolean): void {
    this._rfb.sendKey(keysym, code, down);
  }

  /** Let go of every key that is held, as if the fingers had left them. */
  releaseKeys(): void {
    for (const code of [...this._held]) {
      this._canvas.dispatchEvent(new KeyboardEvent('keyup', { code, cancelable: true }));
    }
    this._held.clear();
  }

  /** Copy the picture; false if there is none yet. */
  copyTo(still: HTMLCanvasElement): boolean {
    const { width, height } = this._canvas;
    if (!this._painted || width === 0 || height === 0) {
      return false;
    }
    still.width = width;
    still.height = height;
    still.getContext('2d')?.drawImage(this._canvas, 0, 0);
    return true;
  }

  close(): void {
    this._watch.disconnect();
    if (!this._over) {
      this._over = true;
      this._rfb.disconnect();
    }
  }

  /**
   * Call back at the first picture. noVNC has no event for it; what it shows, it draws with `drawImage` on this canvas,
   * and after "connect" it does so only for what the guest has sent.
   */
  private _onPaint(done: () => void): void {
    const context = this._canvas.getContext('2d');
    const finish = (): void => {
      if (context) {
        Reflect.deleteProperty(context, 'drawImage');
      }
      clearTimeout(late);
      if (!this._painted && !this._over) {
        this._painted = true;
        done();
      }
    };
    const late = setTimeout(finish, PAINT_MS);
    if (context) {
      const draw = context.drawImage.bind(context) as (...args: unknown[]) => void;
      Object.defineProperty(context, 'drawImage', {
        configurable: true,
        value: (...args: unknown[]) => {
          draw(...args);
          finish();
        }
      });
    }
  }
}
