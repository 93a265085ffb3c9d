/** Does what `link.ts` decides: opens and closes the channel, waits, asks the server, hears events. */
import { type Happened, initial, type State, step } from './link';
import { type Api, type Events, failure, type MachineModel } from './types';
import { onWake } from './wake';

export interface Channel {
  close(): void;
}

export interface ChannelEvents {
  opened(): void;
  closed(code: number): void;
}

export interface ConnectionOptions {
  machine: string;
  api?: Api;
  events?: Events;
  wanted: boolean;
  open(events: ChannelEvents): Channel;
  /** Called after each change. */
  changed(state: State, before: State): void;
  /** Called with what the server says of the machine. */
  learned?(model: MachineModel): void;
}

export class Connection {
  private _state: State;
  private _channel: Channel | null = null;
  private _timer: ReturnType<typeof setTimeout> | undefined;
  private _asking = false;
  /** Something has happened since the question that is on its way: its answer will be too old. */
  private _again = false;
  private _pushed = false;
  private _disposed = false;
  private readonly _cleanUp: (() => void)[] = [];

  constructor(private readonly _options: ConnectionOptions) {
    const { events, wanted } = _options;
    this._state = initial({ wanted, told: events !== undefined });
    if (events) {
      this._cleanUp.push(
        events.subscribe(event => {
          if (event.kind === 'machine-gone' && event.machine === _options.machine) {
            this.tell({ type: 'failed', status: 404 });
          } else if (event.kind === 'machine' && event.machine === _options.machine) {
            this.tell({
              type: 'machine',
              state: event.state ?? null,
              doing: event.doing ?? null,
              pushed: true
            });
            void this.ask();
          } else if (event.kind === 'reload') {
            void this.ask(true);
          }
        })
      );
    }
    this._cleanUp.push(
      onWake(slept => {
        if (slept && this._state.link === 'connected') {
          // After a sleep a connection may look open for minutes although nobody is at the other end.
          this._drop(4000);
        }
        this.tell({ type: 'retry' });
        // Whatever was pushed meanwhile may have been missed.
        void this.ask(true);
      })
    );
    // After the caller's constructor has ended: `open` may need what it has not set up yet.
    queueMicrotask(() => {
      if (!this._disposed) {
        this._act(this._state, { ...this._state, link: 'idle' });
        void this.ask();
      }
    });
  }

  get state(): State {
    return this._state;
  }

  /** Tell what happened. */
  tell(happened: Happened): void {
    if (this._disposed) {
      return;
    }
    if (happened.type === 'machine' || happened.type === 'failed') {
      this._again = true;
    }
    const before = this._state;
    const next = step(before, happened);
    if (next === before) {
      return;
    }
    this._state = next;
    this._act(next, before);
    this._options.changed(this._state, before);
  }

  /** Ask the server how the machine is; `pushed`: it may have changed just now. */
  async ask(pushed = false): Promise<void> {
    const { api } = this._options;
    this._again = true;
    this._pushed ||= pushed;
    if (!api || this._asking || this._disposed) {
      return;
    }
    this._asking = true;
    let tell: () => void;
    do {
      this._again = false;
      tell = await this._answer(api);
    } while (this._again && !this._disposed);
    this._asking = false;
    if (!this._disposed) {
      tell();
    }
    this._pushed = false;
  }

  dispose(): void {
    this._disposed = true;
    clearTimeout(this._timer);
    this._cleanUp.forEach(end => end());
    this._close();
  }

  /** Ask once; what is returned tells the answer. */
  private async _answer(api: Api): Promise<() => void> {
    const { machine, learned } = this._options;
    try {
      const model = (await api.get(`machines/${encodeURIComponent(machine)}`)) as MachineModel;
      return () => {
        const { state, doing = null } = model;
        learned?.(model);
        this.tell({ type: 'machine', state, doing, pushed: this._pushed });
      };
    } catch (error) {
      const { status, type } = failure(error);
      return () => this.tell({ type: 'failed', status, ours: type !== '' });
    }
  }

  private _act(next: State, before: State): void {
    if (next.link === before.link && next.retryAt === before.retryAt) {
      return;
    }
    clearTimeout(this._timer);
    if (next.link === 'connecting' && before.link !== 'connecting') {
      this._open();
    } else if (next.link === 'idle') {
      this._close();
    } else if (next.link === 'waiting') {
      this._close();
      this._timer = setTimeout(
        () => this.tell({ type: 'due' }),
        Math.max(0, (next.retryAt ?? 0) - Date.now())
      );
    }
  }

  private _open(): void {
    this._close();
    const current = (channel: Channel | null): boolean => channel !== null && channel === this._channel;
    const channel = this._options.open({
      opened: () => {
        if (current(channel)) {
          this.tell({ type: 'opened', now: Date.now() });
        }
      },
      closed: code => {
        if (current(channel)) {
          this._drop(code);
        }
      }
    });
    this._channel = channel;
  }

  private _drop(code: number): void {
    this.tell({ type: 'closed', code, now: Date.now(), jitter: Math.random() });
    if (this._state.told || this._state.link === 'waiting') {
      void this.ask();
    }
  }

  private _close(): void {
    const channel = this._channel;
    this._channel = null;
    channel?.close();
  }
}
