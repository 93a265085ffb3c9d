import type { Event } from '@jupyterlab/services';
import type { ReadonlyJSONObject } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import { Debouncer, Poll } from '@lumino/polling';
import type { ISignal, IStream } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { ApiError } from './api';
import type { Api } from './api';
import type { IImage, ILab, ILabEvent, ILimits, IMachine, ITree, IUsage } from './types';
import { doingText } from './units';

/** Whose events on Jupyter's bus are ours. */
const SCHEMA = 'urn:vmlab:events:lab:v1';

/** The least part of an event source that the model needs: `app.serviceManager.events`. */
export interface IEventSource {
  stream: IStream<unknown, Event.Emission>;
}

/** A long piece of work on the server, such as the build of an image. */
export interface IJob {
  text: string;
  /** From 0 to 1; null where nobody can tell. */
  fraction: number | null;
}

/**
 * The lab as the page knows it: read once, then kept true by pushed events.
 *
 * An event only says what has changed; the REST API is asked what it is now. Events can be missed (a server restart, a
 * sleeping laptop), so whatever shows that the page is behind makes it read everything again: a figure in `usage` that
 * does not fit, the first answer after a failure, the page becoming visible.
 */
export class LabModel implements IDisposable {
  constructor(
    readonly api: Api,
    private _events: IEventSource
  ) {
    _events.stream.connect(this._onEvent, this);
    document.addEventListener('visibilitychange', this._onVisible);
    this._usagePoll = new Poll<void, ApiError>({
      auto: false,
      name: 'vmlab:usage',
      factory: () => this._readUsage(),
      standby: 'when-hidden'
    });
    this._figures = new Debouncer(() => {
      if (this._watchers.size) {
        void this._usagePoll.refresh();
      }
    }, 1000);
    // What is left of the host is part of a reading that costs the server something.
    this._settled = new Debouncer(() => (this._watchers.size ? this.reload() : undefined), 5000);
    this.ready = this.reload();
  }

  /** When the first reading has ended, well or badly. */
  readonly ready: Promise<void>;

  /** Whatever a view may show has changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** A sentence for people who do not see the page: a machine's state has changed. */
  get announced(): ISignal<this, string> {
    return this._announced;
  }

  /** Hear the events themselves; the returned function ends that. */
  subscribe(listener: (event: ILabEvent) => void): () => void {
    const slot = (_: unknown, event: ILabEvent): void => listener(event);
    this._pushed.connect(slot);
    return () => {
      this._pushed.disconnect(slot);
    };
  }

  /** Why nothing could be read; null when all is well. */
  get error(): ApiError | null {
    return this._error;
  }

  /** Whether the lab was ever read. */
  get loaded(): boolean {
    return this._lab !== null;
  }

  get accelerator(): string {
    return this._lab?.accelerator ?? '';
  }

  get limits(): ILimits | null {
    return this._lab?.limits ?? null;
  }

  get images(): readonly IImage[] {
    return this._lab?.images ?? [];
  }

  /** By name. */
  get machines(): readonly IMachine[] {
    return this._lab?.machines ?? [];
  }

  machine(name: string): IMachine | undefined {
    return this.machines.find(machine => machine.name === name);
  }

  get running(): number {
    return this.machines.filter(machine => machine.state === 'running').length;
  }

  /** Bytes of RAM that all machines really take. */
  get memoryTaken(): number {
    return this._usage.size
      ? [...this._usage.values()].reduce((sum, u) => sum + u.memory_pss, 0)
      : (this.limits?.memory_taken ?? 0);
  }

  usage(name: string): IUsage | undefined {
    return this._usage.get(name);
  }

  /** The snapshot tree; undefined until it was read. */
  tree(name: string): ITree | undefined {
    return this._trees.get(name);
  }

  /** What is being done to a machine, here or by anybody; null if nothing. */
  doing(name: string): string | null {
    return this._pending.get(name) ?? this.machine(name)?.doing ?? null;
  }

  /** What the build of an image, the making of a machine, or a comparison has said last; by the name of it. */
  job(name: string): IJob | undefined {
    return this._jobs.get(name);
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    if (this._disposed) {
      return;
    }
    this._disposed = true;
    this._events.stream.disconnect(this._onEvent, this);
    document.removeEventListener('visibilitychange', this._onVisible);
    this._usagePoll.dispose();
    this._figures.dispose();
    this._settled.dispose();
    Signal.clearData(this);
  }

  /** Read everything again. */
  async reload(): Promise<void> {
    try {
      const lab = await this.api.lab();
      lab.machines.sort(byName);
      if (this._error) {
        // The server was away, and nobody was told what happened meanwhile.
        this._error = null;
        this._pushed.emit({ kind: 'reload' });
      }
      const before = this._lab;
      this._lab = lab;
      for (const machine of before?.machines ?? []) {
        if (!this.machine(machine.name)) {
          this._drop(machine.name);
        }
      }
      if (before) {
        for (const machine of lab.machines) {
          this._tell(
            before.machines.find(other => other.name === machine.name),
            machine
          );
        }
      }
      this._emit();
      await Promise.all([...this._wanted].map(m => this.readTree(m)));
    } catch (error) {
      this._fail(error);
    }
  }

  /** Read a machine's snapshots now, and again whenever they change. */
  async readTree(name: string): Promise<void> {
    this._wanted.add(name);
    try {
      const tree = await this.api.tree(name);
      if (this._wanted.has(name)) {
        this._trees.set(name, tree);
        this._emit();
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        this._trees.delete(name);
        this._wanted.delete(name);
      } else {
        this._fail(error);
      }
    }
  }

  /** Nobody looks at that tree any more. */
  closeTree(name: string): void {
    this._wanted.delete(name);
    this._trees.delete(name);
  }

  /**
   * Carry out a verb on a machine, and show meanwhile that it is being done.
   *
   * @returns what the call returned; a failure is the caller's.
   */
  async during<T>(name: string, verb: string, call: () => Promise<T>): Promise<T> {
    this._pending.set(name, verb);
    this._emit();
    try {
      return await call();
    } finally {
      this._pending.delete(name);
      this._emit();
      if (verb !== 'delete' && verb !== 'rename') {
        // Of the other two there are events; under that name there may be none any more.
        void this._readMachine(name);
      }
    }
  }

  /**
   * Say how often a view needs figures; the most eager one decides, and nothing is asked when nobody looks.
   *
   * @param who - The view.
   * @param interval - Milliseconds; null when it does not look any more.
   */
  wantUsage(who: object, interval: number | null): void {
    if (interval === null) {
      this._watchers.delete(who);
    } else {
      this._watchers.set(who, interval);
    }
    if (this._watchers.size === 0) {
      void this._usagePoll.stop();
      return;
    }
    const wanted = Math.min(...this._watchers.values());
    this._usagePoll.frequency = { interval: wanted, backoff: true, max: 4 * wanted };
    void (this._usagePoll.state.phase === 'constructed' || this._usagePoll.state.phase === 'stopped'
      ? this._usagePoll.start()
      : this._usagePoll.refresh());
  }

  private async _readMachine(name: string): Promise<void> {
    try {
      const machine = await this.api.machine(name);
      if (!this._lab) {
        return;
      }
      const before = this.machine(name);
      this._lab.machines = [...this.machines.filter(other => other.name !== name), machine].sort(byName);
      this._tell(before, machine);
      if (!before || before.state !== machine.state) {
        this._refreshFigures();
      }
      if (
        this._wanted.has(name) &&
        (before?.here !== machine.here ||
          before.can_undo !== machine.can_undo ||
          before.state !== machine.state)
      ) {
        void this.readTree(name);
      }
      this._emit();
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        this._drop(name);
        this._emit();
      } else {
        this._fail(error);
      }
    }
  }

  private async _readUsage(): Promise<void> {
    const usages = await this.api.usage().catch(error => {
      this._fail(error);
      throw error;
    });
    const before = this._usage;
    this._usage = new Map(usages.map(usage => [usage.name, usage]));
    const fits =
      usages.length === this.machines.length &&
      usages.every(({ name, state }) => this.machine(name)?.state === state || this.doing(name) !== null);
    // Once may be an event that is still on its way.
    const behind = this._error !== null || (!fits && !this._fitted);
    this._fitted = fits;
    if (behind) {
      await this.reload();
    } else {
      for (const usage of usages) {
        const then = before.get(usage.name);
        if (then && then.snapshots !== usage.snapshots && this._wanted.has(usage.name)) {
          void this.readTree(usage.name);
        }
      }
      this._emit();
    }
  }

  /** Figures that nobody pushes have changed: read them soon, if somebody looks. */
  private _refreshFigures(): void {
    void this._figures.invoke();
    void this._settled.invoke();
  }

  private _onEvent(_: unknown, emission: ReadonlyJSONObject): void {
    if (emission['schema_id'] !== SCHEMA) {
      return;
    }
    const event = emission as unknown as ILabEvent;
    this._pushed.emit(event);
    switch (event.kind) {
      case 'machine':
        if (event.machine) {
          void this._readMachine(event.machine);
        }
        break;
      case 'machine-gone':
        if (event.machine) {
          this._drop(event.machine);
          this._refreshFigures();
          this._emit();
        }
        break;
      case 'snapshots':
        if (event.machine && this._wanted.has(event.machine)) {
          void this.readTree(event.machine);
        }
        this._refreshFigures();
        break;
      case 'images':
        void this._readImages();
        break;
      case 'job':
        this._onJob(event);
        break;
      default:
        void this.reload();
    }
  }

  private _onJob(event: ILabEvent): void {
    const about = event.comparison ?? event.image ?? event.machine ?? '';
    if (event.done) {
      this._jobs.delete(about);
    } else {
      this._jobs.set(about, {
        text: event.text ?? '',
        fraction: event.fraction ?? null
      });
    }
    this._emit();
  }

  private async _readImages(): Promise<void> {
    try {
      const images = await this.api.images();
      if (this._lab) {
        this._lab.images = images;
        this._emit();
      }
    } catch (error) {
      this._fail(error);
    }
  }

  private _drop(name: string): void {
    if (this._lab) {
      this._lab.machines = this.machines.filter(m => m.name !== name);
    }
    this._trees.delete(name);
    this._wanted.delete(name);
    this._usage.delete(name);
  }

  private _tell(before: IMachine | undefined, now: IMachine): void {
    if (before && before.state !== now.state) {
      this._announced.emit(`${now.name} is ${now.state}`);
    } else if (before && before.doing !== now.doing && now.doing) {
      this._announced.emit(`${now.name}: ${doingText(now.doing)}`);
    }
  }

  private _fail(error: unknown): void {
    this._error = error instanceof ApiError ? error : new ApiError(String(error), 0);
    this._emit();
  }

  private _emit(): void {
    if (!this._disposed) {
      this._changed.emit();
    }
  }

  private _onVisible = (): void => {
    if (!document.hidden) {
      void this.reload();
    }
  };

  private _announced = new Signal<this, string>(this);
  private _changed = new Signal<this, void>(this);
  private _disposed = false;
  private _error: ApiError | null = null;
  private _figures: Debouncer;
  private _fitted = true;
  private _jobs = new Map<string, IJob>();
  private _lab: ILab | null = null;
  private _pending = new Map<string, string>();
  private _pushed = new Signal<this, ILabEvent>(this);
  private _settled: Debouncer;
  private _trees = new Map<string, ITree>();
  private _usage = new Map<string, IUsage>();
  private _usagePoll: Poll<void, ApiError>;
  private _wanted = new Set<string>();
  private _watchers = new Map<object, number>();
}

function byName(a: IMachine, b: IMachine): number {
  return a.name.localeCompare(b.name, undefined, { numeric: true });
}
