// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { LabModel } from '../src/lab/model';
import type { IMachine, INode, IUsage } from '../src/types';
import { FakeServer, lab, machine, node, refusal, tree, usage } from './fakes';

let server: FakeServer;
let model: LabModel;
let machines: Map<string, IMachine>;
let usages: IUsage[];
let trees: Map<string, INode[]>;
let away: boolean;
let said: string[];

beforeEach(async () => {
  server = new FakeServer();
  machines = new Map([machine('web'), machine('db', { state: 'off' })].map(one => [one.name, one]));
  usages = [usage('web'), usage('db', { state: 'off', memory_pss: 0 })];
  trees = new Map();
  away = false;
  server.answer = ({ path }) => {
    if (away) {
      throw new TypeError('failed to fetch');
    }
    if (path === 'lab') {
      return lab([...machines.values()]);
    }
    if (path === 'usage') {
      return usages;
    }
    const [, name, rest] = /^machines\/([^/]+)(\/snapshots)?/.exec(path) ?? [];
    const found = machines.get(name);
    if (!found) {
      return refusal(404, 'NotFound', `There is no machine named '${name}'.`);
    }
    return rest ? tree(name, trees.get(name) ?? [node('s1', null, { machine: name })], 's1') : found;
  };
  model = new LabModel(server.api, server.events);
  said = [];
  model.announced.connect((_, sentence) => said.push(sentence));
  await model.ready;
});

afterEach(() => {
  model.dispose();
});

/** Wait until something holds that needs answers of the server. */
function until(check: () => void): Promise<void> {
  return vi.waitFor(check, { timeout: 4000, interval: 5 });
}

describe('the first reading', () => {
  it('fills the model, by name', () => {
    expect(model.machines.map(one => one.name)).toEqual(['db', 'web']);
    expect(model.running).toBe(1);
    expect(model.memoryTaken).toBe(7);
    expect(model.error).toBeNull();
  });

  it('says what is wrong, and recovers', async () => {
    away = true;
    await model.reload();
    expect(model.error?.message).toContain('does not answer');
    expect(model.machines).toHaveLength(2);
    away = false;
    await model.reload();
    expect(model.error).toBeNull();
  });
});

describe('events', () => {
  it('make the page read what they name, and nothing else', async () => {
    machines.set('web', machine('web', { state: 'paused' }));
    server.requests = [];
    server.push({ kind: 'machine', machine: 'web', state: 'paused' });
    await until(() => expect(model.machine('web')?.state).toBe('paused'));
    expect(server.asked('GET', 'machines/web')).toBe(1);
    expect(server.asked('GET', 'machines/db')).toBe(0);
    expect(said).toEqual(['web is paused']);
  });

  it('bring a new machine, and take one away', async () => {
    machines.set('new', machine('new'));
    server.push({ kind: 'machine', machine: 'new' });
    await until(() => expect(model.machine('new')).toBeDefined());
    machines.delete('new');
    server.push({ kind: 'machine-gone', machine: 'new' });
    expect(model.machine('new')).toBeUndefined();
  });

  it('about a machine that is gone meanwhile take it away', async () => {
    machines.delete('web');
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(model.machine('web')).toBeUndefined());
    expect(model.error).toBeNull();
  });

  it('of others are none of ours', async () => {
    server.requests = [];
    server.push({ kind: 'machine', machine: 'web' }, 'https://events.jupyter.org/contents');
    await new Promise(resolve => setTimeout(resolve, 20));
    expect(server.requests).toEqual([]);
  });

  it('about snapshots read a tree only if it is looked at', async () => {
    server.push({ kind: 'snapshots', machine: 'web' });
    await model.openTree('db');
    expect(server.asked('GET', 'machines/web/snapshots')).toBe(0);
    expect(model.tree('db')?.here).toBe('s1');
    server.push({ kind: 'snapshots', machine: 'db' });
    await until(() => expect(server.asked('GET', 'machines/db/snapshots')).toBe(2));
    model.closeTree('db');
    server.push({ kind: 'snapshots', machine: 'db' });
    await new Promise(resolve => setTimeout(resolve, 20));
    expect(server.asked('GET', 'machines/db/snapshots')).toBe(2);
  });

  it('about snapshots read every tree in which they stand', async () => {
    machines.set('fork', machine('fork'));
    await model.reload();
    trees.set('fork', [node('s1', null, { machine: 'web' }), node('s2', 's1', { machine: 'fork' })]);
    await model.openTree('fork');
    await model.openTree('db');
    server.requests = [];
    server.push({ kind: 'snapshots', machine: 'web' });
    await until(() => expect(server.asked('GET', 'machines/fork/snapshots')).toBe(1));
    expect(server.asked('GET', 'machines/db/snapshots')).toBe(0);
    // Of a machine that is gone: nobody knows where they stand.
    server.push({ kind: 'snapshots' });
    await until(() => expect(server.asked('GET', 'machines/fork/snapshots')).toBe(2));
    expect(server.asked('GET', 'machines/db/snapshots')).toBe(1);
  });

  it('of jobs are kept until the job has ended', () => {
    server.push({ kind: 'job', image: 'desktop', text: 'unpacking', fraction: 0.5, done: false });
    expect(model.job('image', 'desktop')).toEqual({ text: 'unpacking', fraction: 0.5 });
    // A machine may have the name of an image.
    expect(model.job('machine', 'desktop')).toBeUndefined();
    server.push({ kind: 'job', image: 'desktop', text: '', fraction: null, done: true });
    expect(model.job('image', 'desktop')).toBeUndefined();
  });

  it('reach who has subscribed', () => {
    const heard: string[] = [];
    const stop = model.subscribe(event => heard.push(event.kind));
    server.push({ kind: 'images' });
    stop();
    server.push({ kind: 'images' });
    expect(heard).toEqual(['images']);
  });
});

describe('verbs', () => {
  it('show at once what is being done, and read the machine afterwards', async () => {
    let finish = (): void => undefined;
    const done = model.during('web', 'revert', () => new Promise<void>(resolve => (finish = resolve)));
    expect(model.doing('web')).toBe('revert');
    machines.set('web', machine('web', { here: 'clean' }));
    finish();
    await done;
    expect(model.doing('web')).toBeNull();
    await until(() => expect(model.machine('web')?.here).toBe('clean'));
  });

  it('that fail leave nothing under way', async () => {
    const failing = model.during('web', 'stop', () => Promise.reject(new Error('no')));
    await expect(failing).rejects.toThrow('no');
    expect(model.doing('web')).toBeNull();
  });
});

describe('usage', () => {
  const view = {};

  it('is asked for only while somebody looks', async () => {
    expect(server.asked('GET', 'usage')).toBe(0);
    model.wantUsage(view, 60000);
    await until(() => expect(model.usage('web')?.cpu_percent).toBe(3));
    expect(model.memoryTaken).toBe(50);
    model.wantUsage(view, null);
    model.wantUsage(view, 60000);
    await until(() => expect(server.asked('GET', 'usage')).toBe(2));
  });

  it('that does not fit shows that events were missed', async () => {
    machines.set('web', machine('web', { state: 'off' }));
    machines.set('new', machine('new'));
    usages = [usage('web', { state: 'off' }), usage('db', { state: 'off' }), usage('new')];
    model.wantUsage(view, 50);
    await until(() => expect(model.machine('new')).toBeDefined());
    expect(model.machine('web')?.state).toBe('off');
  });

  it('reads everything again after the server was away, and tells the consoles', async () => {
    const heard: string[] = [];
    model.subscribe(event => heard.push(event.kind));
    away = true;
    model.wantUsage(view, 50);
    await until(() => expect(model.error).not.toBeNull());
    away = false;
    machines.delete('db');
    usages = [usage('web')];
    await until(() => expect(model.error).toBeNull());
    expect(model.machine('db')).toBeUndefined();
    expect(heard).toEqual(['reload']);
  });
});

describe('a tree that is open', () => {
  it('is read again for another machine of the same name', async () => {
    await model.openTree('web');
    machines.delete('web');
    server.push({ kind: 'machine-gone', machine: 'web' });
    expect(model.tree('web')).toBeUndefined();
    machines.set('web', machine('web', { uuid: 'another' }));
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(model.tree('web')).toBeDefined());
  });

  it('is not opened by reading it', async () => {
    await model.readTree('web');
    expect(server.asked('GET', 'machines/web/snapshots')).toBe(0);
  });
});

describe('answers that come late', () => {
  /** Keep back what is answered to a path until `send` is called; what it says is decided now. */
  function held(path: string): { send: () => void } {
    const { answer } = server;
    let send = (): void => undefined;
    server.answer = request => {
      if (request.path !== path) {
        return answer(request);
      }
      server.answer = answer;
      const said = answer(request);
      return new Promise(resolve => (send = () => resolve(said)));
    };
    return { send: () => send() };
  }
  const settle = (): Promise<void> => new Promise(resolve => setTimeout(resolve, 20));

  it('do not take the place of newer ones', async () => {
    const old = held('machines/web');
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(server.asked('GET', 'machines/web')).toBe(1));
    machines.set('web', machine('web', { state: 'paused' }));
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(model.machine('web')?.state).toBe('paused'));
    old.send();
    await settle();
    expect(model.machine('web')?.state).toBe('paused');
  });

  it('do not bring back a machine that is gone', async () => {
    const old = held('machines/web');
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(server.asked('GET', 'machines/web')).toBe(1));
    machines.delete('web');
    server.push({ kind: 'machine-gone', machine: 'web' });
    old.send();
    await settle();
    expect(model.machine('web')).toBeUndefined();
  });

  it('that there is no such machine do not take away one that was made meanwhile', async () => {
    const old = held('machines/new');
    server.push({ kind: 'machine', machine: 'new' });
    await until(() => expect(server.asked('GET', 'machines/new')).toBe(1));
    machines.set('new', machine('new'));
    server.push({ kind: 'machine', machine: 'new' });
    await until(() => expect(model.machine('new')).toBeDefined());
    old.send();
    await settle();
    expect(model.machine('new')).toBeDefined();
  });

  it('about the whole lab keep what is known better', async () => {
    const old = held('lab');
    const reading = model.reload();
    await until(() => expect(server.asked('GET', 'lab')).toBe(2));
    machines.set('web', machine('web', { state: 'paused' }));
    machines.set('new', machine('new'));
    machines.delete('db');
    server.push({ kind: 'machine', machine: 'web' });
    server.push({ kind: 'machine', machine: 'new' });
    server.push({ kind: 'machine-gone', machine: 'db' });
    await until(() => expect(model.machine('new')).toBeDefined());
    await until(() => expect(model.machine('web')?.state).toBe('paused'));
    old.send();
    await reading;
    expect(model.machines.map(({ name, state }) => [name, state])).toEqual([
      ['new', 'running'],
      ['web', 'paused']
    ]);
  });

  it('about a tree do not take the place of newer ones', async () => {
    const old = held('machines/web/snapshots');
    const first = model.openTree('web');
    await until(() => expect(server.asked('GET', 'machines/web/snapshots')).toBe(1));
    trees.set('web', [node('s1', null), node('s2', 's1')]);
    server.push({ kind: 'snapshots', machine: 'web' });
    await until(() => expect(model.tree('web')?.snapshots).toHaveLength(2));
    old.send();
    await first;
    expect(model.tree('web')?.snapshots).toHaveLength(2);
  });
});

describe('a reading that finds what no event told', () => {
  it.each([
    ['another state', (): unknown => machines.set('web', machine('web', { state: 'off' }))],
    ['other work', (): unknown => machines.set('web', machine('web', { doing: 'revert' }))],
    ['a machine that is gone', (): unknown => machines.delete('web')],
    ['a new machine', (): unknown => machines.set('new', machine('new'))],
    ['another machine of that name', (): unknown => machines.set('web', machine('web', { uuid: 'another' }))]
  ])('tells the consoles: %s', async (_, change) => {
    const heard: string[] = [];
    model.subscribe(event => heard.push(event.kind));
    await model.reload();
    expect(heard).toEqual([]);
    change();
    await model.reload();
    expect(heard).toEqual(['reload']);
  });
});
