// @vitest-environment jsdom
import './jsdom';
import { Panel, Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { LabModel } from '../src/lab/model';
import { StatusItem } from '../src/status/item';
import { FakeServer, lab, machine, usage } from './fakes';

let server: FakeServer;
let model: LabModel;
let bar: Panel;
let item: StatusItem;

beforeEach(async () => {
  server = new FakeServer();
  server.answer = ({ path }) => (path === 'lab' ? lab([machine('web')]) : [usage('web')]);
  model = new LabModel(server.api, server.events);
  await model.ready;
  bar = new Panel();
  item = new StatusItem(model, () => undefined);
});

afterEach(() => {
  bar.dispose();
  item.dispose();
  model.dispose();
});

function asked(): number {
  return server.asked('GET', 'usage');
}

describe('the item of the status bar', () => {
  it('asks what machines take as soon as it is there', async () => {
    bar.addWidget(item);
    expect(asked()).toBe(0);
    Widget.attach(bar, document.body);
    await vi.waitFor(() => expect(asked()).toBe(1));
    await vi.waitFor(() => expect(item.node.textContent).toBe('1 · 50 B'));
  });

  it.each([
    ['hidden', () => bar.hide()],
    ['taken out', () => Widget.detach(bar)],
    ['switched off', () => item.dispose()]
  ])('asks no more when it is %s', async (_, end) => {
    const wanted = vi.spyOn(model, 'wantUsage');
    bar.addWidget(item);
    Widget.attach(bar, document.body);
    expect(wanted).toHaveBeenLastCalledWith(item, expect.any(Number));
    end();
    expect(wanted).toHaveBeenLastCalledWith(item, null);
  });
});
