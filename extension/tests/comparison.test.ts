// @vitest-environment jsdom
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { choices, fileOf, guarded, stateOf, themed, titleOf } from '../src/comparisons/comparison';
import { ComparisonView } from '../src/comparisons/view';
import type { IComparisonParts } from '../src/comparisons/view';
import { LabModel } from '../src/lab/model';
import type { INode } from '../src/types';
import { FakeServer, lab, machine, node, refusal, tree } from './fakes';

vi.hoisted(async () => {
  // Lumino derives a class of it when it is loaded; jsdom has none.
  globalThis.DragEvent ??= class extends MouseEvent {} as typeof DragEvent;
  // Node's own fetch takes no signal of jsdom's.
  const { transferableAbortController } = await import('node:util');
  globalThis.AbortController = transferableAbortController().constructor as typeof AbortController;
});

function at(minute: number): Partial<INode> {
  return { created: `2026-01-01T00:0${minute}:00+00:00` };
}

const READY = node('id0', null, { name: 'ready', kind: 'ready', machine: 'tiny' });
const OLD = node('id1', 'id0', { name: 'old', ...at(1) });
const NEW = node('id2', 'id1', { name: 'new', ...at(2) });
const LEFT = node('id3', 'id1', { name: 'left', kind: 'undo', ...at(3) });
const TREE = tree('web', [READY, OLD, NEW, LEFT], 'id1');

describe('the names of a comparison', () => {
  it('are short for states of one machine', () => {
    expect(titleOf({ before: 'desk@clean', after: 'desk' })).toBe('desk: clean → now');
    expect(titleOf({ before: 'desk@s1', after: 'desk@s2' })).toBe('desk: s1 → s2');
    expect(titleOf({ before: 'web@s1', after: 'db' })).toBe('web@s1 → db');
  });

  it('make a name for a file', () => {
    expect(fileOf({ before: 'desk@clean', after: 'desk' })).toBe('desk-clean-now.html');
  });

  it('are ids where two snapshots have the same name', () => {
    const root = node('id9', null, { name: 'old', machine: 'db' });
    expect(stateOf(TREE, OLD)).toBe('web@old');
    expect(stateOf(tree('web', [root, OLD], 'id1'), OLD)).toBe('web@id1');
  });
});

describe('what can be compared with', () => {
  const machines = [machine('db'), machine('web')];

  it('a present: the snapshot that it stands on first, and other machines', () => {
    expect(choices(TREE, machines)).toEqual([
      { label: 'snapshot old (it stands on this)', before: 'web@old', after: 'web' },
      { label: 'snapshot new', before: 'web@new', after: 'web' },
      { label: 'booted state of tiny', before: 'web@ready', after: 'web' },
      { label: 'machine db, now', before: 'web', after: 'db' }
    ]);
  });

  it('a snapshot: the others, the older one before', () => {
    expect(choices(TREE, machines, OLD).map(({ before, after }) => [before, after])).toEqual([
      ['web@old', 'web@new'],
      ['web@ready', 'web@old'],
      ['web@old', 'db']
    ]);
  });
});

describe('the page', () => {
  const page =
    '<!doctype html><html><head><style>a{color:var(--jp-a,red);top:var(--jp-b)}</style></head><body></body></html>';

  it('loads nothing', () => {
    expect(guarded(page)).toContain(
      `<head><meta http-equiv="Content-Security-Policy" content="default-src 'none'; `
    );
  });

  it('has the colours of the theme', () => {
    const values: Record<string, string> = {
      '--jp-a': ' #123 ',
      '--jp-b': 'x</style><script>',
      '--jp-layout-color0': '#111'
    };
    const found = themed(page, name => values[name] ?? '', true);
    expect(found).toContain(':root{color-scheme:dark!important;--jp-a:#123;--jp-layout-color0:#111}');
    expect(found).not.toContain('<script>');
  });
});

describe('the view', () => {
  let server: FakeServer;
  let model: LabModel;
  let view: ComparisonView;
  let answer: () => unknown;
  let dark: boolean;
  let themeChanged: Signal<object, object>;
  const comparison = { before: 'web@clean', after: 'web' };
  const asked = (): string[] => server.requests.map(({ path }) => path).filter(path => path !== 'lab');

  beforeEach(async () => {
    server = new FakeServer();
    answer = () => new Response('<html><head></head><body>differs</body></html>');
    server.answer = ({ path }) => (path === 'lab' ? lab([]) : answer());
    model = new LabModel(server.api, server.events);
    await model.ready;
    dark = false;
    themeChanged = new Signal<object, object>({});
    const themes = { theme: 'x', isLight: () => !dark, themeChanged };
    view = new ComparisonView({ model, themes } as unknown as IComparisonParts, comparison, false);
  });

  afterEach(() => {
    view.dispose();
    model.dispose();
  });

  const frame = (): HTMLIFrameElement | null => view.node.querySelector('iframe');

  it('asks when it is first seen', async () => {
    expect(asked()).toEqual([]);
    Widget.attach(view, document.body);
    await vi.waitFor(() => expect(frame()).not.toBeNull());
    view.hide();
    view.show();
    expect(asked()).toEqual(['diff.html?before=web%40clean&after=web']);
  });

  it('shows the page where it can do nothing', async () => {
    view.refresh();
    await vi.waitFor(() => expect(frame()).not.toBeNull());
    expect(frame()!.getAttribute('sandbox')).toBe('');
    expect(frame()!.srcdoc).toContain('differs');
    expect(frame()!.srcdoc).toContain('color-scheme:light');
    expect(frame()!.title).toBe('What differs: web: clean → now');
    dark = true;
    themeChanged.emit({});
    expect(frame()!.srcdoc).toContain('color-scheme:dark');
    // What is saved has no theme.
    expect(view.html).toBe('<html><head></head><body>differs</body></html>');
  });

  it('says meanwhile what is compared', async () => {
    let finish: (response: Response) => void = () => undefined;
    answer = () => new Promise<Response>(resolve => (finish = resolve));
    view.refresh();
    const said = (): string | null | undefined => view.node.querySelector('[role=status]')?.textContent;
    expect(said()).toBe('Comparing web@clean with web …');
    server.push({ kind: 'job', comparison: 'web@clean web', text: 'ram', fraction: null, done: false });
    expect(said()).toBe('Comparing web@clean with web: RAM …');
    server.push({ kind: 'job', comparison: 'web@other web', text: 'disk', fraction: null, done: false });
    expect(said()).toBe('Comparing web@clean with web: RAM …');
    await vi.waitFor(() => expect(asked()).toHaveLength(1));
    finish(new Response('<html><head></head></html>'));
    await vi.waitFor(() => expect(frame()).not.toBeNull());
  });

  it('says what is wrong and what to do, and tries again', async () => {
    answer = () => refusal(404, 'NotFound', 'There is no <b>web</b>.', 'there are db');
    view.refresh();
    await vi.waitFor(() => expect(view.node.querySelector('[role=alert]')).not.toBeNull());
    const said = [...view.node.querySelectorAll('p')].map(line => line.textContent);
    expect(said).toEqual(['There is no <b>web</b>.', 'Next: there are db']);
    expect(view.html).toBeNull();
    answer = () => new Response('<html><head></head></html>');
    view.node.querySelector('button')!.click();
    await vi.waitFor(() => expect(frame()).not.toBeNull());
  });

  it('shows only what was asked for last', async () => {
    const answers: ((response: Response) => void)[] = [];
    answer = () => new Promise<Response>(resolve => answers.push(resolve));
    view.refresh();
    await vi.waitFor(() => expect(answers).toHaveLength(1));
    view.inside = true;
    await vi.waitFor(() => expect(answers).toHaveLength(2));
    expect(asked()[1]).toBe('diff.html?before=web%40clean&after=web&inside=true');
    answers[0](new Response('<html><head></head>old</html>'));
    answers[1](new Response('<html><head></head>new</html>'));
    await vi.waitFor(() => expect(view.html).toContain('new'));
  });

  it('lets the server stop when it is closed', async () => {
    const signals: (AbortSignal | undefined)[] = [];
    const diffPage = server.api.diffPage.bind(server.api);
    server.api.diffPage = (which, inside, signal) => {
      signals.push(signal);
      return diffPage(which, inside, signal);
    };
    answer = () => new Promise(() => undefined);
    view.refresh();
    view.dispose();
    expect(signals[0]?.aborted).toBe(true);
  });
});
