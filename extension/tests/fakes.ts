import { ServerConnection } from '@jupyterlab/services';
import { Stream } from '@lumino/signaling';

import { Api } from '../src/lab/api';
import type { ILab, ILabEvent, IMachine, INode, ITree, IUsage } from '../src/types';

const BASE = 'http://server/user/x/';

export interface IRequest {
  method: string;
  /** Below `vmlab/api/`. */
  path: string;
  body: unknown;
  headers: Headers;
}

/** What answers instead of a Jupyter server: REST by `answer`, and pushed events. */
export class FakeServer {
  constructor() {
    this.api = new Api(
      ServerConnection.makeSettings({
        baseUrl: BASE,
        wsUrl: BASE,
        fetch: (input: RequestInfo | URL, init?: RequestInit) => this._fetch(input, init)
      })
    );
  }

  readonly api: Api;

  readonly events = { stream: new Stream<object, { schema_id: string }>({}) };

  requests: IRequest[] = [];

  /** Called for each request; a returned `Response` is sent as it is, anything else as JSON. */
  answer: (request: IRequest) => unknown = () => ({});

  asked(method: string, path: string): number {
    return this.requests.filter(request => request.method === method && request.path === path).length;
  }

  push(event: ILabEvent, schema = 'urn:vmlab:events:lab:v1'): void {
    this.events.stream.emit({ schema_id: schema, ...event });
  }

  private async _fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
    const sent = new Request(input, init);
    const url = new URL(sent.url);
    url.search = url.search.replace(/[?&]\d{10,}$/, '');
    const text = await sent.text();
    const request = {
      method: sent.method,
      path: url.href.replace(`${BASE}vmlab/api/`, ''),
      body: text ? (JSON.parse(text) as unknown) : undefined,
      headers: sent.headers
    };
    this.requests.push(request);
    const found = await this.answer(request);
    return found instanceof Response ? found : Response.json(found);
  }
}

/** A refusal as the server sends it. */
export function refusal(status: number, type: string, message: string, hint: string | null = null): Response {
  return Response.json({ error: { type, message, hint, evidence: {} }, message }, { status });
}

export function machine(name: string, values: Partial<IMachine> = {}): IMachine {
  return {
    name,
    uuid: `uuid-of-${name}`,
    state: 'running',
    image: 'tiny',
    memory: 96,
    vcpus: 1,
    here: null,
    can_undo: false,
    why: null,
    forwards: [],
    description: '',
    created: '2026-01-01T00:00:00+00:00',
    doing: null,
    console: true,
    ...values
  };
}

export function usage(name: string, values: Partial<IUsage> = {}): IUsage {
  return {
    name,
    state: 'running',
    cpu_percent: 3,
    cpu_seconds: 1,
    memory_pss: 50,
    memory_guest: 30,
    memory_qemu: 20,
    memory_private: 40,
    memory_shared: 20,
    memory_size: 100,
    disk: 10,
    snapshots: 0,
    ...values
  };
}

export function lab(machines: IMachine[]): ILab {
  return {
    version: '0.1.0',
    accelerator: 'tcg',
    machines,
    images: [],
    limits: {
      memory_total: 1000,
      memory_available: 900,
      memory_taken: 7,
      disk_total: 1000,
      disk_free: 500,
      disk_taken: 100,
      disk_folded: 0,
      disk_freeing: 0,
      cpus: 2,
      running: machines.length,
      reserve_memory: 0,
      reserve_disk: 0,
      max_running: null
    }
  };
}

export function node(id: string, parent: string | null, values: Partial<INode> = {}): INode {
  return {
    id,
    name: id,
    kind: 'snapshot',
    machine: 'web',
    parent,
    created: null,
    live: true,
    ram_bytes: 1,
    disk_bytes: 1,
    size: 2,
    description: '',
    here: false,
    ...values
  };
}

export function tree(machineName: string, snapshots: INode[], here: string | null): ITree {
  return { machine: machineName, state: 'running', here, can_undo: false, snapshots };
}
