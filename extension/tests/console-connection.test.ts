// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Connection } from '../src/console/connection';
import type { Api, LabEvent, MachineModel } from '../src/console/types';
import { ApiError } from '../src/lab/api';

/** Requests that are on their way. */
let asked: { answer(state: string, doing?: string): void; fail(error: Error): void }[];
let tell: (event: LabEvent) => void;
let learned: string[];
let connection: Connection;

const api: Api = {
  get: () =>
    new Promise((resolve, reject) =>
      asked.push({
        answer: (state, doing) =>
          resolve({ name: 'web', state, doing: doing ?? null } satisfies MachineModel),
        fail: reject
      })
    ),
  post: () => Promise.resolve({}),
  url: path => path
};

async function settle(): Promise<void> {
  await vi.advanceTimersByTimeAsync(0);
}

beforeEach(async () => {
  vi.useFakeTimers();
  asked = [];
  learned = [];
  connection = new Connection({
    machine: 'web',
    api,
    events: {
      subscribe: listener => {
        tell = listener;
        return () => undefined;
      }
    },
    wanted: true,
    open: () => ({ close: () => undefined }),
    changed: () => undefined,
    learned: model => learned.push(model.state)
  });
  await settle();
});

afterEach(() => {
  connection.dispose();
  vi.useRealTimers();
});

describe('an answer of the server', () => {
  it('is dropped when an event is newer, and asked for once more', async () => {
    tell({ kind: 'machine', machine: 'web', state: 'paused', doing: null });
    tell({ kind: 'machine', machine: 'web', state: 'paused', doing: null });
    expect(asked).toHaveLength(1);
    asked[0]?.answer('running');
    await settle();
    expect(connection.state.machine).toBe('paused');
    expect(learned).toEqual([]);
    expect(asked).toHaveLength(2);
    asked[1]?.answer('paused');
    await settle();
    expect(learned).toEqual(['paused']);
    expect(asked).toHaveLength(2);
  });

  it('does not bring back a machine that has gone since', async () => {
    tell({ kind: 'machine-gone', machine: 'web' });
    asked[0]?.answer('running');
    await settle();
    expect(connection.state.problem).toBe('gone');
    asked[1]?.fail(new ApiError('No such machine.', 404, null, 'NotFound'));
    await settle();
    expect(connection.state.problem).toBe('gone');
  });

  it('is understood whoever threw it', async () => {
    asked[0]?.fail(new ApiError('Forbidden', 403));
    await settle();
    expect(connection.state.problem).toBe('forbidden');
    void connection.ask();
    asked[1]?.fail(new ApiError('libvirt is away.', 503, null, 'HostError'));
    await settle();
    expect(connection.state.problem).toBe('hypervisor');
  });
});

describe('a page that is looked at again', () => {
  it('asks how the machine is, as events may have been missed', async () => {
    asked[0]?.answer('running');
    await settle();
    document.dispatchEvent(new Event('visibilitychange'));
    expect(asked).toHaveLength(2);
    asked[1]?.answer('off');
    await settle();
    expect(connection.state.machine).toBe('off');
  });
});
