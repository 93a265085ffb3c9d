import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type { IImage, ILab, IMachine, INewMachine, ISnapshot, ITree, IUsage, IVerification } from '../types';

/**
 * Something that the server refused or could not do: a sentence, and often the next thing to try.
 */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly hint: string | null = null,
    /** The exception's name on the server, e.g. `WrongState`; empty where the server could not be reached. */
    readonly type: string = ''
  ) {
    super(message);
    this.name = 'ApiError';
  }
}

/**
 * The verbs that need nothing but a machine.
 */
export type Verb = 'start' | 'stop' | 'kill' | 'pause' | 'resume' | 'undo';

/** Two states as `%vm diff` names them: `web@clean` a snapshot, `web` a machine as it is now. */
export interface IComparison {
  before: string;
  after: string;
}

/** A picture, or `unchanged` where the one with that ETag still holds. */
export type Picture = { etag: string; blob: Blob } | 'unchanged';

/**
 * The typed client of vmlab's REST API. All failures are `ApiError`.
 */
export class Api {
  constructor(
    /** Where the server is, and how it is asked. */
    readonly settings: ServerConnection.ISettings = ServerConnection.makeSettings()
  ) {}

  /** The whole address of a path below `vmlab/api/`. */
  url(path: string): string {
    return URLExt.join(this.settings.baseUrl, 'vmlab/api', path);
  }

  get<T>(path: string): Promise<T> {
    return this._json<T>('GET', path);
  }

  post<T>(path: string, body: object = {}): Promise<T> {
    return this._json<T>('POST', path, body);
  }

  del(path: string): Promise<void> {
    return this._json<void>('DELETE', path);
  }

  lab(): Promise<ILab> {
    return this.get('lab');
  }

  usage(): Promise<IUsage[]> {
    return this.get('usage');
  }

  images(): Promise<IImage[]> {
    return this.get('images');
  }

  build(image: string): Promise<IImage> {
    return this.post(`images/${part(image)}/build`);
  }

  machine(name: string): Promise<IMachine> {
    return this.get(machinePath(name));
  }

  create(machine: INewMachine): Promise<IMachine> {
    return this.post('machines', machine);
  }

  act(name: string, verb: Verb): Promise<IMachine> {
    return this.post(`${machinePath(name)}/${verb}`);
  }

  delete(name: string): Promise<void> {
    return this.del(machinePath(name));
  }

  rename(name: string, to: string): Promise<IMachine> {
    return this.post(`${machinePath(name)}/rename`, { name: to });
  }

  describe(name: string, description: string): Promise<IMachine> {
    return this.post(`${machinePath(name)}/describe`, { description });
  }

  tree(name: string): Promise<ITree> {
    return this.get(`${machinePath(name)}/snapshots`);
  }

  snapshot(name: string, values: { name?: string; description?: string } = {}): Promise<ISnapshot> {
    return this.post(`${machinePath(name)}/snapshots`, values);
  }

  revert(name: string, snapshot?: string): Promise<IMachine> {
    return this.post(`${machinePath(name)}/revert`, snapshot ? { snapshot } : {});
  }

  fork(
    name: string,
    values: { snapshot?: string; count?: number; names?: string[] } = {}
  ): Promise<IMachine[]> {
    return this.post(`${machinePath(name)}/fork`, values);
  }

  forget(snapshot: string): Promise<void> {
    return this.del(snapshotPath(snapshot));
  }

  renameSnapshot(snapshot: string, name: string): Promise<ISnapshot> {
    return this.post(`${snapshotPath(snapshot)}/rename`, { name });
  }

  describeSnapshot(snapshot: string, description: string): Promise<ISnapshot> {
    return this.post(`${snapshotPath(snapshot)}/describe`, { description });
  }

  verify(snapshot: string): Promise<IVerification> {
    return this.post(`${snapshotPath(snapshot)}/verify`);
  }

  /**
   * The screen of a machine or of a snapshot.
   *
   * @param what - `machines/<name>` or `snapshots/<id>`.
   * @param width - Pixels that will be shown.
   * @param etag - Of the picture that is there already.
   */
  async screen(what: string, width: number, etag?: string): Promise<Picture> {
    const headers: Record<string, string> = etag ? { 'If-None-Match': etag } : {};
    // Without "no-cache" JupyterLab adds a timestamp to the address.
    const response = await this._send(`${what}/screen.png?width=${width}`, {
      method: 'GET',
      headers,
      cache: 'no-cache'
    });
    if (response.status === 304) {
      return 'unchanged';
    }
    if (!response.ok) {
      throw await readError(response);
    }
    return {
      etag: response.headers.get('ETag') ?? '',
      blob: await response.blob()
    };
  }

  /**
   * What differs between two states, as a page that holds what guests wrote.
   *
   * @param signal - Ends it; the server then compares no further.
   */
  async diffPage({ before, after }: IComparison, inside: boolean, signal?: AbortSignal): Promise<string> {
    const query = new URLSearchParams({ before, after, ...(inside ? { inside: 'true' } : {}) });
    const response = await this._send(`diff.html?${query}`, { method: 'GET', cache: 'no-cache', signal });
    if (!response.ok) {
      throw await readError(response);
    }
    return response.text();
  }

  private async _json<T>(method: string, path: string, body?: object): Promise<T> {
    const response = await this._send(path, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body) })
    });
    if (!response.ok) {
      throw await readError(response);
    }
    return (response.status === 204 ? undefined : await response.json()) as T;
  }

  private async _send(path: string, init: RequestInit): Promise<Response> {
    try {
      return await ServerConnection.makeRequest(this.url(path), init, this.settings);
    } catch {
      throw new ApiError(
        'The Jupyter server does not answer.',
        0,
        'machines and snapshots are not touched by that; the page goes on when it is back'
      );
    }
  }
}

/** The path of a machine; what a name must not contain is escaped all the same. */
export function machinePath(name: string): string {
  return `machines/${part(name)}`;
}

export function snapshotPath(id: string): string {
  return `snapshots/${part(id)}`;
}

function part(name: string): string {
  return encodeURIComponent(name);
}

/** What the body of a refusal may hold: our `error`, or the `message` alone of Jupyter's own handlers. */
interface IErrorBody {
  error?: { type: string; message: string; hint: string | null };
  message?: string;
}

async function readError(response: Response): Promise<ApiError> {
  let body: IErrorBody = {};
  try {
    body = (await response.json()) as IErrorBody;
  } catch {
    // Not ours: a proxy's page.
  }
  if (response.status === 404 && !body.error) {
    return new ApiError(
      'This Jupyter server does not have the vmlab extension.',
      404,
      'install vmlab where the server runs, and restart it'
    );
  }
  return new ApiError(
    body.error?.message ?? body.message ?? `The server answered ${response.status} ${response.statusText}.`,
    response.status,
    body.error?.hint ?? null,
    body.error?.type ?? ''
  );
}
