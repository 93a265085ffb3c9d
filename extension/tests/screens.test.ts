// @vitest-environment jsdom
import './jsdom';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { LabModel } from '../src/lab/model';
import { Screens } from '../src/panel/screens';
import { FakeServer, lab, machine } from './fakes';

const PICTURE = 'machines/web/screen.png?width=320';

let server: FakeServer;
let model: LabModel;
let screens: Screens;
let send: ((etag: string) => void)[];

beforeEach(async () => {
  server = new FakeServer();
  send = [];
  server.answer = ({ path }) => {
    if (path === 'lab') {
      return lab([machine('web')]);
    }
    return new Promise(resolve =>
      send.push(etag => resolve(new Response(`picture ${etag}`, { headers: { ETag: etag } })))
    );
  };
  let number = 0;
  vi.spyOn(URL, 'createObjectURL').mockImplementation(() => `blob:${++number}`);
  vi.spyOn(URL, 'revokeObjectURL');
  model = new LabModel(server.api, server.events);
  screens = new Screens(model);
  await model.ready;
});

afterEach(() => {
  screens.dispose();
  model.dispose();
  vi.restoreAllMocks();
});

describe('the screens of machines', () => {
  it('are fetched as seldom as the settings allow', () => {
    for (const seconds of [1, 30, 31, 60, 1]) {
      expect(() => (screens.interval = seconds * 1000)).not.toThrow();
    }
  });

  it('are fetched one at a time, and no picture is left behind', async () => {
    screens.active = true;
    screens.watch('web', true);
    screens.watch('web', false);
    screens.watch('web', true);
    await vi.waitFor(() => expect(server.asked('GET', PICTURE)).toBe(1));
    await new Promise(resolve => setTimeout(resolve, 20));
    expect(server.asked('GET', PICTURE)).toBe(1);
    send[0]('a');
    await vi.waitFor(() => expect(screens.url('web')).toBe('blob:1'));
    await vi.waitFor(() => expect(server.asked('GET', PICTURE)).toBe(2));
    expect(server.requests.at(-1)?.headers.get('If-None-Match')).toBe('a');
    send[1]('b');
    await vi.waitFor(() => expect(screens.url('web')).toBe('blob:2'));
    await vi.waitFor(() => expect(URL.revokeObjectURL).toHaveBeenCalledWith('blob:1'), 3000);
  });
});
