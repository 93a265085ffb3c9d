/**
 * What the server sends, mirrored by name; `openapi.yaml` documents it. Sizes are bytes unless a name says otherwise.
 */

export type State = 'running' | 'paused' | 'off' | 'suspended' | 'crashed';

export interface IMachine {
  name: string;
  uuid: string;
  state: State;
  image: string;
  /** MiB of RAM. */
  memory: number;
  vcpus: number;
  /** Name of the snapshot that the present stands on. */
  here: string | null;
  can_undo: boolean;
  /** Pairs: port on the host's loopback, port in the guest. */
  forwards: [number, number][];
  description: string;
  created: string;
  /** The verb that somebody is carrying out on it now, in whatever process. */
  doing: string | null;
  /** Whether it has a screen to connect to now. */
  console: boolean;
}

export interface IUsage {
  name: string;
  state: State;
  /** Of one CPU: 200 is two CPUs at full load. */
  cpu_percent: number;
  cpu_seconds: number;
  memory_pss: number;
  memory_private: number;
  memory_shared: number;
  memory: number;
  disk: number;
  snapshots: number;
}

export interface ILimits {
  memory_total: number;
  memory_available: number;
  memory_taken: number;
  disk_total: number;
  disk_free: number;
  disk_taken: number;
  cpus: number;
  running: number;
  reserve_memory: number;
  reserve_disk: number;
  max_running: number | null;
}

export interface IImage {
  name: string;
  title: string;
  description: string;
  /** MiB of RAM. */
  memory: number;
  vcpus: number;
  built: boolean;
  ready: boolean;
  builtin: boolean;
  size: number;
}

export interface ILab {
  version: string;
  accelerator: string;
  limits: ILimits;
  machines: IMachine[];
  images: IImage[];
}

/** A snapshot as it stands in a machine's tree. */
export interface INode {
  id: string;
  name: string;
  kind: 'snapshot' | 'ready' | 'undo';
  /** The machine it is of; of a `ready` state, the image. */
  machine: string;
  /** Id of the snapshot it was taken from. */
  parent: string | null;
  created: string | null;
  live: boolean;
  ram_bytes: number | null;
  disk_bytes: number | null;
  size: number;
  description: string;
  here: boolean;
}

export interface ITree {
  machine: string;
  state: State;
  /** Id of the snapshot that the present stands on. */
  here: string | null;
  can_undo: boolean;
  snapshots: INode[];
}

/** The answer to `POST machines/<m>/snapshots`. */
export interface ISnapshot {
  id: string;
  name: string;
  machine: string;
  description: string;
  live: boolean;
  /** How long the guest stood still. */
  pause_ms: number | null;
}

export interface IVerification {
  snapshot: string;
  machine: string;
  ok: boolean;
  registers: boolean;
  ram: boolean | null;
  screen: boolean | null;
  files: boolean;
  rip: string[];
  differences: string[];
}

/** The body of `POST machines`; what is missing is as in the image. */
export interface INewMachine {
  image: string;
  name?: string;
  memory?: number;
  vcpus?: number;
  disk?: number;
  network?: string;
  forwards?: [number, number][];
  firmware?: string;
  sound?: string;
  kernel_args?: string;
  start?: boolean;
}

/** What the server pushes; small on purpose: the page reads again what it names. */
export interface ILabEvent {
  kind: 'machine' | 'machine-gone' | 'snapshots' | 'images' | 'job' | 'reload';
  machine?: string;
  /** Of a job that builds it. */
  image?: string;
  /** Of a job that compares: the two states, as they were asked for. */
  comparison?: string;
  state?: State;
  doing?: string | null;
  text?: string;
  fraction?: number | null;
  /** Whether a job has ended, well or not. */
  done?: boolean;
}
