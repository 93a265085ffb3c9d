import type { Event } from '@jupyterlab/services';
import type { ReadonlyJSONObject } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import { Debouncer, Poll } from '@lumino/polling';
import type { ISignal, IStream } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { doingText } from '../console/doing';
import type { IImage, ILab, ILabEvent, ILimits, IMachine, ITree, IUsage } from '../types';
import { ApiError } from './api';
import type { Api } from './api';

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

  /** What the build of an image, the making of a machine, or a comparison has said last; until it has ended. */
  job(of: 'image' | 'machine' | 'comparison', name: string): IJob | undefined {
    return this._jobs.get(`${of} ${name}`);
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
    const asked = this._order.ask();
    try {
      const lab = await this.api.lab();
      // After a failure the server was away, and nobody was told what happened meanwhile.
      let missed = this._error !== null;
      this._error = null;
      const before = this._lab;
      if (this._order.takes('lab', asked)) {
        this._lab = { ...lab, machines: before?.machines ?? [], images: before?.images ?? [] };
      }
      if (this._lab && this._order.takes('images', asked)) {
        this._lab.images = lab.images;
      }
      const found = new Map(lab.machines.map(machine => [machine.name, machine]));
      for (const name of new Set([...this.machines.map(machine => machine.name), ...found.keys()])) {
        if (this._order.takes(`machine ${name}`, asked)) {
          const changed = this._set(name, found.get(name));
          missed ||= changed && before !== null;
        }
      }
      if (missed) {
        this._pushed.emit({ kind: 'reload' });
      }
      this._emit();
      await Promise.all(
        [...this._wanted].filter(name => this.machine(name)).map(name => this.readTree(name))
      );
    } catch (error) {
      this._fail(error);
    }
  }

  /** Read a machine's snapshots, now and whenever they change, until `closeTree`. */
  openTree(name: string): Promise<void> {
    this._wanted.add(name);
    return this.readTree(name);
  }

  /** Read a machine's snapshots again, if anybody looks at them. */
  async readTree(name: string): Promise<void> {
    if (!this._wanted.has(name)) {
      return;
    }
    const asked = this._order.ask();
    try {
      const tree = await this.api.tree(name);
      if (this._wanted.has(name) && this._order.takes(`tree ${name}`, asked)) {
        this._trees.set(name, tree);
        this._emit();
      }
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) {
        this._fail(error);
      } else if (this._order.takes(`tree ${name}`, asked)) {
        this._trees.delete(name);
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
    const asked = this._order.ask();
    let machine: IMachine | undefined;
    try {
      machine = await this.api.machine(name);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) {
        this._fail(error);
        return;
      }
    }
    if (!this._lab || !this._order.takes(`machine ${name}`, asked)) {
      return;
    }
    const before = this.machine(name);
    this._set(name, machine);
    if (before?.state !== machine?.state) {
      this._refreshFigures();
    }
    if (
      machine &&
      (before?.uuid !== machine.uuid ||
        before.here !== machine.here ||
        before.can_undo !== machine.can_undo ||
        before.state !== machine.state)
    ) {
      void this.readTree(name);
    }
    this._emit();
  }

  /**
   * A machine as it is now; undefined: there is none of that name.
   *
   * @returns whether consoles would see a difference.
   */
  private _set(name: string, machine: IMachine | undefined): boolean {
    const before = this.machine(name);
    if (!this._lab) {
      return false;
    }
    if (before?.uuid !== machine?.uuid) {
      this._trees.delete(name);
      this._usage.delete(name);
    }
    const others = this.machines.filter(other => other.name !== name);
    this._lab.machines = machine ? [...others, machine].sort(byName) : others;
    if (before && machine) {
      if (before.state !== machine.state) {
        this._announced.emit(`${name} is ${machine.state}`);
      } else if (before.doing !== machine.doing && machine.doing) {
        this._announced.emit(`${name}: ${doingText(machine.doing)}`);
      }
    }
    return (
      before?.uuid !== machine?.uuid || before?.state !== machine?.state || before?.doing !== machine?.doing
    );
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
        if (then && then.snapshots !== usage.snapshots) {
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
          // What was asked before this may still say that it is there.
          this._order.takes(`machine ${event.machine}`, this._order.ask());
          this._set(event.machine, undefined);
          this._readTreesWith(event.machine);
          this._refreshFigures();
          this._emit();
        }
        break;
      case 'snapshots':
        this._readTreesWith(event.machine);
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
    const { comparison, image, machine } = event;
    const about = comparison ? `comparison ${comparison}` : image ? `image ${image}` : `machine ${machine}`;
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

  /** Read the trees again in which snapshots of a machine stand: its own and those of its forks; all, of any machine. */
  private _readTreesWith(name?: string): void {
    for (const wanted of this._wanted) {
      const nodes = this._trees.get(wanted)?.snapshots ?? [];
      if (!name || wanted === name || nodes.some(node => node.machine === name)) {
        void this.readTree(wanted);
      }
    }
  }

  private async _readImages(): Promise<void> {
    const asked = this._order.ask();
    try {
      const images = await this.api.images();
      if (this._lab && this._order.takes('images', asked)) {
        this._lab.images = images;
        this._emit();
      }
    } catch (error) {
      this._fail(error);
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
  private _order = new Order();
  private _pending = new Map<string, string>();
  private _pushed = new Signal<this, ILabEvent>(this);
  private _settled: Debouncer;
  private _trees = new Map<string, ITree>();
  private _usage = new Map<string, IUsage>();
  private _usagePoll: Poll<void, ApiError>;
  private _wanted = new Set<string>();
  private _watchers = new Map<object, number>();
}

/**
 * The order in which things were asked for. Answers can overtake each other; an older one must not undo a newer one.
 */
class Order {
  /** Call it before asking; what it returns belongs to the answer. */
  ask(): number {
    return ++this._asked;
  }

  /** Whether an answer is the newest so far about something; it is then taken to be used. */
  takes(about: string, asked: number): boolean {
    if (asked < (this._newest.get(about) ?? 0)) {
      return false;
    }
    this._newest.set(about, asked);
    return true;
  }

  private _asked = 0;
  private _newest = new Map<string, number>();
}

function byName(a: IMachine, b: IMachine): number {
  return a.name.localeCompare(b.name, undefined, { numeric: true });
}
