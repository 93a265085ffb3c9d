/** The small picture of a minimised console: the last one, and a new one when the machine has changed. */
import type { Api } from './types';

const WIDTH = 320;

export class Thumbnail {
  private _stale = true;
  private _shown = false;

  constructor(
    private readonly _canvas: HTMLCanvasElement,
    private readonly _machine: string,
    private readonly _api: Api | undefined
  ) {}

  /** Whether the picture is an old one, or there is none. */
  set stale(stale: boolean) {
    this._stale = stale;
  }

  /** It is looked at, or not any more; `possible`: the machine has a screen. */
  show(shown: boolean, possible: boolean): void {
    this._shown = shown;
    if (shown && possible && this._stale && this._api) {
      this._stale = false;
      const path = `machines/${encodeURIComponent(this._machine)}/screen.png?width=${WIDTH}&t=${Date.now()}`;
      this._load(this._api.url(path));
    }
  }

  private _load(url: string): void {
    const picture = new Image();
    picture.addEventListener('load', () => {
      if (this._shown) {
        const { naturalWidth: width, naturalHeight: height } = picture;
        this._canvas.width = width;
        this._canvas.height = height;
        this._canvas.getContext('2d')?.drawImage(picture, 0, 0);
        this._canvas.hidden = false;
      }
    });
    picture.src = url;
  }
}
