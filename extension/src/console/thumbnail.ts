/** The small picture of a minimised console: the last one, and a new one now and then. */
import type { Api } from './types';

const EVERY_MS = 15_000;
const WIDTH = 320;

export class Thumbnail {
  private _timer: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly _canvas: HTMLCanvasElement,
    private readonly _machine: string,
    private readonly _api: Api | undefined
  ) {}

  /** Begin to refresh it, or stop. */
  refresh(on: boolean): void {
    if (!on || !this._api) {
      this.dispose();
    } else if (this._timer === undefined) {
      this._timer = setInterval(() => this._load(), EVERY_MS);
      this._load();
    }
  }

  dispose(): void {
    clearInterval(this._timer);
    this._timer = undefined;
  }

  private _load(): void {
    const picture = new Image();
    picture.addEventListener('load', () => {
      if (this._timer !== undefined) {
        const { naturalWidth: width, naturalHeight: height } = picture;
        this._canvas.width = width;
        this._canvas.height = height;
        this._canvas.getContext('2d')?.drawImage(picture, 0, 0);
        this._canvas.hidden = false;
      }
    });
    picture.src =
      this._api?.url(
        `machines/${encodeURIComponent(this._machine)}/screen.png?width=${WIDTH}&t=${Date.now()}`
      ) ?? '';
  }
}
