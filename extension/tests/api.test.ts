// @vitest-environment jsdom
import { beforeEach, describe, expect, it } from 'vitest';

import { ApiError } from '../src/lab/api';
import { FakeServer, lab, machine, refusal } from './fakes';

let server: FakeServer;

beforeEach(() => {
  server = new FakeServer();
});

async function trouble(call: Promise<unknown>): Promise<ApiError> {
  const error = await call.then(
    () => null,
    (found: unknown) => found
  );
  expect(error).toBeInstanceOf(ApiError);
  return error as ApiError;
}

describe('requests', () => {
  it('go below the base URL of the server', async () => {
    server.answer = () => lab([]);
    await server.api.lab();
    expect(server.api.url('lab')).toBe('http://server/user/x/vmlab/api/lab');
    expect(server.asked('GET', 'lab')).toBe(1);
  });

  it('send what the contract says', async () => {
    server.answer = () => machine('web');
    await server.api.act('web', 'pause');
    await server.api.revert('web', 'id1');
    await server.api.revert('web');
    await server.api.fork('web', { snapshot: 'id1', count: 3 });
    await server.api.rename('web', 'www');
    await server.api.renameSnapshot('id1', 'clean');
    expect(server.requests.map(({ method, path, body }) => [method, path, body])).toEqual([
      ['POST', 'machines/web/pause', {}],
      ['POST', 'machines/web/revert', { snapshot: 'id1' }],
      ['POST', 'machines/web/revert', {}],
      ['POST', 'machines/web/fork', { snapshot: 'id1', count: 3 }],
      ['POST', 'machines/web/rename', { name: 'www' }],
      ['POST', 'snapshots/id1/rename', { name: 'clean' }]
    ]);
  });

  it('cannot leave the API by a name', async () => {
    await server.api.machine('../../contents');
    expect(server.requests[0].path).toBe('machines/..%2F..%2Fcontents');
  });

  it('take an empty answer', async () => {
    server.answer = () => new Response(null, { status: 204 });
    await expect(server.api.delete('web')).resolves.toBeUndefined();
  });
});

describe('errors', () => {
  it('carry the sentence, the hint and the type', async () => {
    server.answer = () => refusal(409, 'WrongState', 'web is not running.', 'start it with `%vm start web`');
    const error = await trouble(server.api.act('web', 'pause'));
    expect(error).toMatchObject({
      status: 409,
      type: 'WrongState',
      message: 'web is not running.',
      hint: 'start it with `%vm start web`'
    });
  });

  it('say that the server is away', async () => {
    server.answer = () => {
      throw new TypeError('failed to fetch');
    };
    const error = await trouble(server.api.lab());
    expect(error.status).toBe(0);
    expect(error.message).toContain('does not answer');
  });

  it('say that the extension is missing', async () => {
    server.answer = () => Response.json({ message: 'Not Found', reason: null }, { status: 404 });
    expect((await trouble(server.api.lab())).message).toContain('does not have the vmlab extension');
  });

  it('survive a page that is no JSON', async () => {
    server.answer = () => new Response('<html>Bad gateway', { status: 502, statusText: 'Bad Gateway' });
    expect((await trouble(server.api.lab())).message).toBe('The server answered 502 Bad Gateway.');
  });
});

describe('pictures', () => {
  it('are not sent again while the ETag holds', async () => {
    server.answer = ({ headers }) =>
      headers.get('If-None-Match') === '"a"'
        ? new Response(null, { status: 304 })
        : new Response('png', { headers: { ETag: '"a"' } });
    const first = await server.api.screen('machines/web', 320);
    expect(first).toMatchObject({ etag: '"a"' });
    expect(await server.api.screen('machines/web', 320, '"a"')).toBe('unchanged');
    expect(server.requests[1].path).toBe('machines/web/screen.png?width=320');
  });
});
