/**
 * Who has the keyboard and the mouse: the page, or the guest.
 *
 * A console takes them when its handle is clicked (or by Enter on that), and gives them back when something else is clicked, or
 * when the left Ctrl and Alt are pressed and let go with no other key between. Desktop VM managers use the same chord; a
 * guest notices nothing of it, and Ctrl+Alt+F1, Ctrl+Alt+Del and AltGr are others. Escape belongs to the guest.
 */

import { presses } from './dom';

const MAC = /mac/i.test(navigator.platform);
export const RELEASE = MAC ? 'Control+Option' : 'Ctrl+Alt';

export interface GripOptions {
  root: HTMLElement;
  /** where the guest's keys arrive; also takes the focus while the screen is away */
  stage: HTMLElement;
  /** what is clicked to work in the guest; Tab gets to it, and it has the focus after the chord */
  handle: HTMLElement;
  changed(held: boolean): void;
}

export class Grip {
  private _held = false;
  private readonly _down = new Set<string>();
  private _alone = true;
  private readonly _options: GripOptions;

  constructor(options: GripOptions) {
    this._options = options;
    const { handle, stage } = options;
    handle.addEventListener('click', event => {
      if (event.target === handle) {
        this.take();
      }
    });
    handle.addEventListener('keydown', event => {
      if (event.target === handle && presses(event)) {
        event.preventDefault();
        this.take();
      }
    });
    stage.addEventListener('keydown', this._keydown, true);
    stage.addEventListener('keyup', this._keyup, true);
    stage.addEventListener('focusout', this._focusout);
    document.addEventListener('pointerdown', this._pointerdown, true);
  }

  /** Whether the guest has them. */
  get held(): boolean {
    return this._held;
  }

  take(): void {
    this._set(true);
  }

  release(): void {
    this._set(false);
  }

  dispose(): void {
    document.removeEventListener('pointerdown', this._pointerdown, true);
  }

  private _set(held: boolean): void {
    this._down.clear();
    this._alone = true;
    if (this._held !== held) {
      this._held = held;
      this._options.changed(held);
    }
  }

  private readonly _keydown = (event: KeyboardEvent): void => {
    if (event.code === 'ControlLeft' || event.code === 'AltLeft') {
      this._down.add(event.code);
    } else {
      this._alone = false;
    }
  };

  private readonly _keyup = (event: KeyboardEvent): void => {
    // Keys that we let go ourselves are no chord.
    const chord = this._down.has(event.code) && this._down.size === 2 && this._alone && event.isTrusted;
    this._down.delete(event.code);
    if (![...this._down].length) {
      this._alone = true;
    }
    if (chord && this._held) {
      this.release();
      this._options.handle.focus({ preventScroll: true });
    }
  };

  private readonly _focusout = (event: FocusEvent): void => {
    // Another window in front is no reason to let go: whoever comes back goes on. The focus going nowhere is what
    // happens when the canvas is taken out of the page; whoever does that sees to it.
    const to = event.relatedTarget;
    if (to instanceof Node && !this._options.root.contains(to)) {
      this.release();
    }
  };

  private readonly _pointerdown = (event: PointerEvent): void => {
    if (!this._held) {
      return;
    }
    const path = event.composedPath();
    // While a button is held noVNC has an element of its own over the whole page.
    const ours = path.some(
      node =>
        node === this._options.root || (node instanceof Element && node.id === 'noVNC_mouse_capture_elem')
    );
    if (!ours) {
      this.release();
    }
  };
}
