/** What the consoles need from whoever shows them. Nothing in this folder knows JupyterLab. */

/** A machine as the REST API tells it; only the fields that a console uses. */
export interface MachineModel {
  name: string;
  /** `running`, `paused`, `asleep`, `off`, `suspended` or `crashed` */
  state: string;
  /** what somebody is doing to it right now (`revert`, `snapshot`, ...), or null */
  doing?: string | null;
  can_undo?: boolean;
}

export interface SnapshotModel {
  id: string;
  name: string;
  live: boolean;
  created: string | null;
  here: boolean;
  /** nodes of the tree that are no snapshots (the image's ready state is one that can be gone back to) */
  kind?: string;
}

/** Actions on machines. Paths are relative to `{base}vmlab/api/`. What they throw has the fields of `Failure`. */
export interface Api {
  get(path: string): Promise<unknown>;
  post(path: string, body?: unknown): Promise<unknown>;
  /** The URL of a path, for pictures. */
  url(path: string): string;
}

/** One message of the event schema `vmlab.server`. */
export interface LabEvent {
  kind: string;
  machine?: string;
  state?: string;
  doing?: string | null;
  text?: string;
  fraction?: number | null;
}

/** What happens in the lab, pushed. */
export interface Events {
  /** Call `listener` at every event; the returned function ends that. */
  subscribe(listener: (event: LabEvent) => void): () => void;
}

/** `fit`: the screen is as large as there is room for; `actual`: one pixel of the guest is one of the page. */
export type Mode = 'fit' | 'actual';

/** How a console is shown. */
export interface Look {
  /** of a screen */
  mode?: Mode;
  readOnly: boolean;
  minimised: boolean;
}

/** `mode`, `readOnly` and `minimised` are how it begins. */
export interface ConsoleOptions extends Partial<Look> {
  /** The machine's name. */
  machine: string;
  /** The Jupyter server's base URL; ends with `/`. */
  baseUrl: string;
  /** Actions on the machine. Without it the toolbar has only what a VNC connection can do. */
  api?: Api;
  /** Events of the lab. Without them changes are noticed by trying again. */
  events?: Events;
  /** The whole WebSocket URL, where it is not the Jupyter server's (the web console). */
  wsUrl?: string;
  /** Offered in the toolbar when given: show the same console somewhere else. */
  popOut?: () => void;
  /** Called when a person changes what the options say. */
  changed?: (change: Partial<Look>) => void;
}

/** A request that failed: what happened, and what to do about it. */
export interface Failure {
  message: string;
  /** the HTTP status; 0 when the server could not be reached */
  status: number;
  hint: string | null;
  /** the exception's name on vmlab's server; empty if it was not that which answered */
  type: string;
}

/** What is known of an error. By its fields: JupyterLab's extension, another bundle, throws errors of its own class. */
export function failure(error: unknown): Failure {
  const { status, hint, type } = Object(error) as Partial<Failure>;
  return {
    message: error instanceof Error ? error.message : String(error),
    status: status ?? 0,
    hint: hint ?? null,
    type: type ?? ''
  };
}

export class ApiError extends Error implements Failure {
  constructor(
    message: string,
    readonly status: number,
    readonly hint: string | null = null,
    readonly type: string = ''
  ) {
    super(message);
    this.name = 'ApiError';
  }
}
