// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { serverApi } from '../src/console/api';
import { serverEvents } from '../src/console/events';
import type { LabEvent } from '../src/console/types';

describe('the API of a server', () => {
  const api = serverApi('/user/x/');
  let answer: Response;
  const fetched = vi.fn((_url: string, _options: RequestInit) => Promise.resolve(answer));

  beforeEach(() => {
    fetched.mockClear();
    vi.stubGlobal('fetch', fetched);
    document.cookie = '_xsrf=abc%7C1';
  });

  it('asks below the base URL, with the XSRF token in a header and none in the URL', async () => {
    answer = new Response('{"name": "web"}', { status: 201 });
    expect(await api.post('machines', { image: 'tiny' })).toEqual({ name: 'web' });
    const [url, options] = fetched.mock.calls[0] as [string, RequestInit];
    expect(url).toBe('http://localhost:3000/user/x/vmlab/api/machines');
    expect(options.method).toBe('POST');
    expect(options.credentials).toBe('same-origin');
    expect((options.headers as Record<string, string>)['X-XSRFToken']).toBe('abc|1');
    expect(options.body).toBe('{"image":"tiny"}');
  });

  it('gives null where there is no answer', async () => {
    answer = new Response(null, { status: 204 });
    expect(await api.post('machines/web/keys', { keys: ['a'] })).toBeNull();
  });

  it('tells message and hint of an error', async () => {
    const error = { type: 'WrongState', message: 'web is off.', hint: 'start it' };
    answer = Response.json({ error }, { status: 409 });
    await expect(api.post('machines/web/pause')).rejects.toMatchObject({
      status: 409,
      message: 'web is off.',
      hint: 'start it',
      type: 'WrongState'
    });
  });

  it('says that one is not signed in, and that the server does not answer', async () => {
    answer = new Response('<html>', { status: 403 });
    await expect(api.get('lab')).rejects.toMatchObject({ status: 403, message: /not signed in/ });
    fetched.mockRejectedValueOnce(new TypeError('Failed to fetch'));
    await expect(api.get('lab')).rejects.toMatchObject({ status: 0, message: /does not answer/ });
  });
});

describe('the events of a server', () => {
  const sockets: FakeSocket[] = [];

  class FakeSocket extends EventTarget {
    static readonly CLOSED = 3;
    readyState = 0;
    constructor(readonly url: string) {
      super();
      sockets.push(this);
    }
    close(): void {
      this.readyState = 3;
    }
    says(data: unknown): void {
      this.dispatchEvent(Object.assign(new Event('message'), { data: JSON.stringify(data) }));
    }
  }

  beforeEach(() => {
    vi.useFakeTimers();
    vi.stubGlobal('WebSocket', FakeSocket);
    sockets.length = 0;
  });

  afterEach(() => {
    vi.useRealTimers();
  });

  it('are those of our schema, over one WebSocket for the page', () => {
    const heard: LabEvent[] = [];
    const ends = [1, 2].map(() => serverEvents('/user/x/').subscribe(event => heard.push(event)));
    expect(sockets.map(socket => socket.url)).toEqual(['ws://localhost:3000/user/x/api/events/subscribe']);
    sockets[0]?.says({ schema_id: 'https://events.jupyter.org/other', kind: 'machine' });
    sockets[0]?.says({
      schema_id: 'urn:vmlab:events:lab:v1',
      kind: 'machine',
      machine: 'web',
      state: 'running'
    });
    expect(heard.map(event => event.machine)).toEqual(['web', 'web']);
    ends.forEach(end => end());
    expect(sockets[0]?.readyState).toBe(FakeSocket.CLOSED);
  });

  it('come back by themselves, and say that some may have been missed', async () => {
    const heard: string[] = [];
    const end = serverEvents('/').subscribe(event => heard.push(event.kind));
    sockets[0]?.dispatchEvent(new Event('open'));
    expect(heard).toEqual([]);
    sockets[0]?.dispatchEvent(new Event('close'));
    await vi.advanceTimersByTimeAsync(400);
    expect(sockets).toHaveLength(2);
    sockets[1]?.dispatchEvent(new Event('open'));
    expect(heard).toEqual(['reload']);
    end();
  });
});
