import type { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import type { IPoll } from '@lumino/polling';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { machinePath } from '../lab/api';
import type { LabModel } from '../lab/model';

/** Pixels of the pictures that are asked for: twice what is shown, for sharp screens. */
const WIDTH = 320;

interface IScreen {
  etag: string;
  /** An object URL. */
  url: string;
}

/**
 * The machines' screens as small pictures.
 *
 * Only those that a card in view has asked for are fetched, and only while the machine runs; the ETag saves sending and
 * drawing one that has not changed.
 */
export class Screens implements IDisposable {
  constructor(private _model: LabModel) {
    this._poll = new Poll({
      auto: false,
      name: 'vmlab:screens',
      factory: () => this._refresh(),
      frequency: every(2000),
      standby: 'when-hidden'
    });
    _model.changed.connect(this._onChanged, this);
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Milliseconds between two pictures of a machine. */
  set interval(interval: number) {
    this._poll.frequency = every(interval);
  }

  /** Whether anybody looks. */
  set active(active: boolean) {
    this._active = active;
    void (active ? this._poll.start() : this._poll.stop());
  }

  /** The picture of a machine that was fetched last. */
  url(machine: string): string | undefined {
    return this._screens.get(machine)?.url;
  }

  /** Say whether a card that shows this machine is in view. */
  watch(machine: string, inView: boolean): void {
    if (!inView) {
      this._watched.delete(machine);
    } else if (!this._watched.has(machine)) {
      this._watched.add(machine);
      if (this._active) {
        void this._fetch(machine);
      }
    }
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  dispose(): void {
    this._poll.dispose();
    this._screens.forEach(screen => URL.revokeObjectURL(screen.url));
    this._screens.clear();
    Signal.clearData(this);
  }

  private async _refresh(): Promise<void> {
    // One after the other: a page of machines must not keep the server from other work.
    for (const machine of this._watched) {
      if (this._model.machine(machine)?.state === 'running') {
        await this._fetch(machine);
      }
    }
  }

  /** Fetch a picture, after the one that is on its way: two at a time would not know of each other. */
  private _fetch(name: string): Promise<void> {
    const fetching = (this._fetching.get(name) ?? Promise.resolve()).then(() => this._fetchNow(name));
    this._fetching.set(name, fetching);
    return fetching;
  }

  private async _fetchNow(name: string): Promise<void> {
    const machine = this._model.machine(name);
    if (!machine?.console) {
      return;
    }
    try {
      const { etag } = this._screens.get(name) ?? {};
      const picture = await this._model.api.screen(machinePath(name), WIDTH, etag);
      if (picture === 'unchanged' || this.isDisposed) {
        return;
      }
      const before = this._screens.get(name);
      this._screens.set(name, {
        etag: picture.etag,
        url: URL.createObjectURL(picture.blob)
      });
      this._changed.emit();
      if (before) {
        // The page still shows it until it is drawn anew.
        setTimeout(() => URL.revokeObjectURL(before.url), 1000);
      }
    } catch {
      // It was just stopped or reverted: the model hears of that, and the next round gets the next picture.
    }
  }

  private _onChanged(model: LabModel): void {
    for (const [name, screen] of this._screens) {
      if (!model.machine(name)?.console) {
        URL.revokeObjectURL(screen.url);
        this._screens.delete(name);
      }
    }
    for (const { name, state, console } of model.machines) {
      if (this._states.get(name) !== state) {
        this._states.set(name, state);
        // Paused machines are not asked again and again; their last picture is fetched once.
        if (console && this._active && this._watched.has(name)) {
          void this._fetch(name);
        }
      }
    }
  }

  private _active = false;
  private _changed = new Signal<this, void>(this);
  private _fetching = new Map<string, Promise<void>>();
  private _poll: Poll;
  private _screens = new Map<string, IScreen>();
  private _states = new Map<string, string>();
  private _watched = new Set<string>();
}

/** Regularly, also after failures: those of one machine must not hold up the others. */
function every(interval: number): IPoll.Frequency {
  return { interval, backoff: false, max: interval };
}
