// @vitest-environment jsdom
import './jsdom';
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/ui-components';
import { CommandRegistry } from '@lumino/commands';
import { MessageLoop } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';
import { createElement } from 'react';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { LabModel } from '../src/lab/model';
import { createMachine } from '../src/making/dialog';
import { Actions } from '../src/panel/actions';
import { addCommands } from '../src/panel/commands';
import { openMenu } from '../src/panel/menu';
import { Screens } from '../src/panel/screens';
import { PanelState } from '../src/panel/state';
import { PanelView } from '../src/panel/view';
import { CommandIDs } from '../src/tokens';
import type { IImage, IMachine, INode } from '../src/types';
import { FakeServer, lab, machine, node, refusal, tree, usage } from './fakes';
import type { IRequest } from './fakes';

let server: FakeServer;
let model: LabModel;
let state: PanelState;
let panel: ReactWidget;
let commands: CommandRegistry;
let executed: [string, unknown][];
let machines: Map<string, IMachine>;
let images: IImage[];
let nodes: INode[];
/** What answers to requests that change something. */
let act: (request: IRequest) => unknown;

function image(name: string, values: Partial<IImage> = {}): IImage {
  return {
    name,
    title: `The ${name}`,
    description: '',
    memory: 96,
    vcpus: 1,
    built: true,
    ready: true,
    builtin: true,
    damaged: null,
    size: 2 << 20,
    ...values
  };
}

beforeEach(async () => {
  machines = new Map([machine('web'), machine('db', { state: 'off' })].map(one => [one.name, one]));
  images = [image('tiny'), image('desktop', { built: false, ready: false, size: 0 })];
  nodes = [node('s1', null), node('s2', 's1')];
  act = () => ({});
  server = new FakeServer();
  server.answer = request => {
    const { method, path } = request;
    if (method !== 'GET') {
      return act(request);
    }
    if (path === 'lab') {
      return { ...lab([...machines.values()]), images };
    }
    if (path === 'images') {
      return images;
    }
    if (path === 'usage') {
      return [...machines.values()].map(one => usage(one.name, { state: one.state }));
    }
    const [, name, rest] = /^machines\/([^/]+)(\/.*)?/.exec(path) ?? [];
    const found = machines.get(name);
    if (!found || rest?.startsWith('/screen')) {
      return refusal(404, 'NotFound', 'There is none.');
    }
    return rest ? tree(name, nodes, 's1') : found;
  };
  model = new LabModel(server.api, server.events);
  await model.ready;
  state = new PanelState(model);
  commands = new CommandRegistry();
  const actions = new Actions(model);
  const shell = { activateById: () => undefined };
  addCommands({
    app: { commands, shell } as unknown as JupyterFrontEnd,
    model,
    state,
    actions,
    palette: null,
    create: async () => undefined
  });
  executed = [];
  for (const id of [CommandIDs.openTab, CommandIDs.openComparison]) {
    commands.addCommand(id, { execute: args => void executed.push([id, args]) });
  }
  const screens = new Screens(model);
  panel = ReactWidget.create(createElement(PanelView, { model, state, actions, commands, screens }));
  Widget.attach(panel, document.body);
  await until(() => expect(card('web')).not.toBeNull());
});

afterEach(() => {
  document.querySelectorAll<HTMLElement>('.jp-Dialog .jp-mod-reject').forEach(button => button.click());
  Notification.dismiss();
  panel.dispose();
  model.dispose();
});

function until<T>(check: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(check, { timeout: 4000, interval: 5 });
}

function card(name: string): HTMLElement | null {
  return panel.node.querySelector(`[data-machine="${name}"]`);
}

function button(label: string): HTMLButtonElement {
  const found = panel.node.querySelector<HTMLButtonElement>(`button[aria-label="${label}"]`);
  expect(found, label).not.toBeNull();
  return found!;
}

function dialog(): HTMLElement {
  const found = document.querySelector<HTMLElement>('.jp-Dialog');
  expect(found).not.toBeNull();
  return found!;
}

function accept(): void {
  dialog().querySelector<HTMLElement>('.jp-mod-accept')!.click();
}

function select(value: string): void {
  const list = dialog().querySelector('select')!;
  expect([...list.options].map(option => option.value)).toContain(value);
  list.value = value;
}

function type(input: Element, text: string): void {
  (input as HTMLInputElement).value = text;
  input.dispatchEvent(new Event('input', { bubbles: true }));
}

describe('an open tree', () => {
  it('is closed for another machine of the same name, and can be opened', async () => {
    state.setExpanded('web', true);
    await until(() => expect(panel.node.querySelectorAll('[role=treeitem]')).toHaveLength(3));
    machines.delete('web');
    server.push({ kind: 'machine-gone', machine: 'web' });
    await until(() => expect(card('web')).toBeNull());
    machines.set('web', machine('web', { uuid: 'another' }));
    server.push({ kind: 'machine', machine: 'web' });
    await until(() => expect(card('web')).not.toBeNull());
    expect(state.isExpanded('web')).toBe(false);
    state.setExpanded('web', true);
    await until(() => expect(panel.node.querySelectorAll('[role=treeitem]')).toHaveLength(3));
  });

  it('stays open when its machine is renamed', async () => {
    state.setExpanded('web', true);
    await until(() => expect(panel.node.querySelectorAll('[role=treeitem]')).toHaveLength(3));
    machines.delete('web');
    machines.set('site', machine('site', { uuid: 'uuid-of-web' }));
    server.push({ kind: 'machine-gone', machine: 'web' });
    server.push({ kind: 'machine', machine: 'site' });
    await until(() => expect(card('site')).not.toBeNull());
    expect(card('web')).toBeNull();
    await until(() => expect(panel.node.querySelectorAll('[role=treeitem]')).toHaveLength(3));
    expect(card('site')?.querySelector('[role=tree]')?.getAttribute('aria-label')).toBe('Snapshots of site');
    expect(server.asked('GET', 'machines/site/snapshots')).toBe(1);
  });

  it('of a fork renames a snapshot without touching the machine that it was taken of', async () => {
    const during = vi.spyOn(model, 'during');
    await model.openTree('db');
    await new Actions(model).renameSnapshot('db', nodes[0], 'first');
    expect(during).toHaveBeenCalledWith('db', 'rename', expect.any(Function));
    expect(server.asked('POST', 'snapshots/s1/rename')).toBe(1);
    expect(server.asked('GET', 'machines/db/snapshots')).toBe(2);
  });
});

describe('the keyboard', () => {
  it('stays at the button that was pressed, then at the card', async () => {
    let finish = (): void => undefined;
    act = () => new Promise(resolve => (finish = () => resolve(machines.get('web'))));
    const pause = button('Pause: web');
    pause.focus();
    pause.click();
    await until(() => expect(button('Pause: web').getAttribute('aria-disabled')).toBe('true'));
    expect(document.activeElement).toBe(pause);
    pause.click();
    expect(server.asked('POST', 'machines/web/pause')).toBe(1);
    machines.set('web', machine('web', { state: 'paused' }));
    finish();
    await until(() => button('Resume: web'));
    expect(document.activeElement).toBe(card('web'));
  });

  it('goes to the next card when a machine goes', async () => {
    card('db')!.focus();
    machines.delete('db');
    server.push({ kind: 'machine-gone', machine: 'db' });
    await until(() => expect(card('db')).toBeNull());
    expect(document.activeElement).toBe(card('web'));
  });

  it('comes back from a menu', async () => {
    card('web')!.focus();
    openMenu(commands, { machine: 'web' }, 0, 0);
    MessageLoop.flush();
    const menu = document.querySelector('.lm-Menu')!;
    expect(menu.contains(document.activeElement)).toBe(true);
    menu.dispatchEvent(new KeyboardEvent('keydown', { keyCode: 27, bubbles: true } as KeyboardEventInit));
    await until(() => expect(document.querySelector('.lm-Menu')).toBeNull());
    expect(document.activeElement).toBe(card('web'));
  });
});

describe('commands', () => {
  it('are not for machines that are not there', () => {
    expect(commands.isEnabled(CommandIDs.pause)).toBe(true);
    expect(commands.isEnabled(CommandIDs.pause, { machine: 'web' })).toBe(true);
    expect(commands.isEnabled(CommandIDs.pause, { machine: 'db' })).toBe(false);
    expect(commands.isEnabled(CommandIDs.pause, { machine: 'gone' })).toBe(false);
    expect(commands.isEnabled(CommandIDs.revert, { machine: 'gone' })).toBe(false);
    expect(commands.isEnabled(CommandIDs.revert, { machine: 'web', snapshot: 'gone' })).toBe(false);
  });

  it('on snapshots ask which machine and which snapshot', async () => {
    expect(commands.label(CommandIDs.revert)).toBe('Revert to a Snapshot…');
    expect(commands.isEnabled(CommandIDs.revert)).toBe(true);
    const done = commands.execute(CommandIDs.revert);
    await until(() => select('web'));
    accept();
    await until(() => select('snapshot s2'));
    accept();
    await done;
    expect(server.requests.find(({ path }) => path === 'machines/web/revert')?.body).toEqual({
      snapshot: 's2'
    });
  });

  it('compare a snapshot whose tree nobody has opened', async () => {
    const done = commands.execute(CommandIDs.comparePresent, { machine: 'web' });
    await until(() => select('snapshot s2'));
    accept();
    await done;
    expect(executed).toEqual([[CommandIDs.openComparison, { before: 'web@s2', after: 'web' }]]);
  });

  it('do nothing when nothing is chosen', async () => {
    const done = commands.execute(CommandIDs.forget);
    await until(() => select('web'));
    dialog().querySelector<HTMLElement>('.jp-mod-reject')!.click();
    await done;
    expect(document.querySelector('.jp-Dialog')).toBeNull();
  });

  it('take a snapshot with a name and a description', async () => {
    act = () => ({ id: 's3', name: 'clean', machine: 'web', description: '', live: true, pause_ms: 5 });
    const done = commands.execute(CommandIDs.snapshotNamed, { machine: 'web' });
    await until(() => dialog());
    const [name, description] = dialog().querySelectorAll('input');
    type(name, 'no@name');
    expect(dialog().querySelector<HTMLButtonElement>('.jp-mod-accept')!.disabled).toBe(true);
    expect(dialog().textContent).toContain('Use 1 to 80 letters');
    type(name, 'clean');
    type(description, ' before the exam ');
    accept();
    await done;
    expect(server.requests.find(({ method }) => method === 'POST')?.body).toEqual({
      name: 'clean',
      description: 'before the exam'
    });
  });

  it.each([
    ['exam-1, exam-2', { names: ['exam-1', 'exam-2'] }],
    ['', { count: 2 }]
  ])('fork under names that are given: %s', async (names, body) => {
    act = () => [machine('exam-1')];
    const done = commands.execute(CommandIDs.forkMany, { machine: 'web' });
    await until(() => dialog());
    type(dialog().querySelector('input')!, names);
    accept();
    await done;
    expect(server.requests.find(({ method }) => method === 'POST')?.body).toEqual(body);
  });
});

describe('images', () => {
  it('are listed, and built where they can be', async () => {
    let finish = (): void => undefined;
    act = () => new Promise(resolve => (finish = () => resolve(images[1])));
    const row = panel.node.querySelector('[data-image=desktop]')!;
    expect(row.textContent).toContain('not built yet');
    expect(panel.node.querySelector('[data-image=tiny]')?.textContent).toContain('2.0 MiB');
    button('Build the image desktop').click();
    await until(() => expect(server.asked('POST', 'images/desktop/build')).toBe(1));
    server.push({ kind: 'job', image: 'desktop', text: 'unpacking', fraction: 0.5, done: false });
    await until(() => expect(row.textContent).toContain('unpacking'));
    expect(row.querySelector('progress')?.value).toBe(0.5);
    images = [images[0], image('desktop')];
    server.push({ kind: 'job', image: 'desktop', text: '', fraction: null, done: true });
    server.push({ kind: 'images' });
    finish();
    await until(() => button('New machine of desktop'));
    await until(() => expect(row.querySelector('progress')).toBeNull());
  });
});

describe('the form of a new machine', () => {
  let finish: (answer: unknown) => void;

  beforeEach(() => {
    act = () => new Promise(resolve => (finish = resolve));
  });

  function reject(): HTMLElement {
    return dialog().querySelector<HTMLElement>('.jp-Dialog-footer .jp-mod-reject')!;
  }

  /** Fill in the form, and send it. */
  async function create(): Promise<{ made: ReturnType<typeof createMachine> }> {
    const made = createMachine(model, 'desktop');
    await until(() => expect(dialog().querySelector('select')?.value).toBe('desktop'));
    accept();
    await until(() => expect(reject().textContent).toBe('Go On in the Background'));
    await until(() => expect(server.asked('POST', 'machines')).toBe(1));
    return { made };
  }

  it('closes when the machine is there', async () => {
    const { made } = await create();
    server.push({ kind: 'job', machine: 'desktop', text: 'unpacking', fraction: 0.5, done: false });
    await until(() => expect(dialog().textContent).toContain('unpacking'));
    // The machine appears before its making has ended; its name is free no more.
    machines.set('desktop', machine('desktop', { doing: 'create' }));
    server.push({ kind: 'machine', machine: 'desktop' });
    await until(() => expect(model.machine('desktop')).toBeDefined());
    MessageLoop.flush();
    expect(dialog().textContent).toContain('unpacking');
    finish(machine('desktop'));
    await expect(made).resolves.toMatchObject({ machine: { name: 'desktop' }, watched: true });
    expect(document.querySelector('.jp-Dialog')).toBeNull();
  });

  it('can be left: it goes on in a notification', async () => {
    const { made } = await create();
    reject().click();
    await until(() => expect(Notification.manager.notifications).toHaveLength(1));
    server.push({ kind: 'job', machine: 'desktop', text: 'unpacking', fraction: 0.5, done: false });
    const [{ message, type, options }] = Notification.manager.notifications;
    expect([message, type, options.progress]).toEqual(['desktop: unpacking', 'in-progress', 0.5]);
    finish(machine('desktop'));
    await expect(made).resolves.toMatchObject({ machine: { name: 'desktop' }, watched: false });
    expect(Notification.manager.notifications).toEqual([]);
  });

  it('that was left says why there is no machine', async () => {
    const { made } = await create();
    reject().click();
    await until(() => expect(Notification.manager.notifications).toHaveLength(1));
    finish(refusal(507, 'NoSpace', 'There is no room.', 'delete something'));
    await expect(made).resolves.toBeNull();
    expect(Notification.manager.notifications.map(({ type, message }) => [type, message])).toEqual([
      ['error', 'There is no room.\nNext: delete something']
    ]);
  });

  it('stays with what was typed where it could not be made', async () => {
    const { made } = await create();
    finish(refusal(507, 'NoSpace', 'There is no room.', 'delete something'));
    await until(() => expect(dialog().textContent).toContain('Next: delete something'));
    expect(reject().textContent).toBe('Cancel');
    reject().click();
    await expect(made).resolves.toBeNull();
  });
});
