// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
// As in JupyterLab, where errors come from another bundle than the console's.
import type { Api, ConsoleOptions, LabEvent } from '../src/console/types';
import { ConsoleView } from '../src/console/view';
import { ApiError } from '../src/lab/api';

/** In place of noVNC, which needs a browser: remembers what it was told. */
const vnc = vi.hoisted(() => {
  class FakeRFB extends EventTarget {
    static readonly all: FakeRFB[] = [];
    readonly canvas: HTMLCanvasElement;
    readonly sent: [string | null, boolean][] = [];
    readonly screen: HTMLDivElement;
    viewOnly = false;
    open = true;

    constructor(target: HTMLElement) {
      super();
      this.screen = document.createElement('div');
      this.canvas = document.createElement('canvas');
      this.canvas.width = 640;
      this.canvas.height = 480;
      this.screen.append(this.canvas);
      target.append(this.screen);
      // noVNC, too, listens on its canvas, and sends nothing while it only views.
      this.canvas.addEventListener('keydown', event => {
        this.sendKey(0, event.code, true);
        event.stopPropagation();
      });
      this.canvas.addEventListener('keyup', event => this.sendKey(0, event.code, false));
      FakeRFB.all.push(this);
    }

    sendKey(_keysym: number, code: string | null, down: boolean): void {
      if (!this.viewOnly) {
        this.sent.push([code, down]);
      }
    }

    focus(options?: FocusOptions): void {
      this.canvas.focus(options);
    }

    disconnect(): void {
      this.open = false;
      this.screen.remove();
    }
  }
  return { FakeRFB };
});
vi.mock('@novnc/novnc', () => ({ default: vnc.FakeRFB }));

class FakeSocket extends EventTarget {
  static readonly all: FakeSocket[] = [];
  static readonly OPEN = 1;
  static readonly CLOSED = 3;
  constructor(
    readonly url: string,
    readonly protocols: string[]
  ) {
    super();
    FakeSocket.all.push(this);
  }
  close(): void {}
  /** The server closes it; noVNC then takes its canvas away. */
  ends(code: number): void {
    this.dispatchEvent(Object.assign(new Event('close'), { code }));
    last().screen.remove();
  }
}

class Nothing {
  observe(): void {}
  disconnect(): void {}
}

let view: ConsoleView;
let host: HTMLElement;
let tell: (event: LabEvent) => void;
const calls: [string, string, unknown][] = [];
const model = { name: 'web', state: 'running', doing: null as string | null, can_undo: true };
let fail: ApiError | null = null;

const api: Api = {
  get: path => {
    calls.push(['GET', path, null]);
    return fail ? Promise.reject(fail) : Promise.resolve({ ...model });
  },
  post: (path, body) => {
    calls.push(['POST', path, body]);
    return fail ? Promise.reject(fail) : Promise.resolve({ ...model });
  },
  url: path => `/api/${path}`
};

function last() {
  return vnc.FakeRFB.all[vnc.FakeRFB.all.length - 1] as InstanceType<typeof vnc.FakeRFB>;
}

function socket(): FakeSocket {
  return FakeSocket.all[FakeSocket.all.length - 1] as FakeSocket;
}

function root(): HTMLElement {
  return host.querySelector('.vmlab-console') as HTMLElement;
}

function shield(): HTMLElement {
  return host.querySelector('.vmlab-console-shield') as HTMLElement;
}

function tool(id: string): HTMLButtonElement | null {
  return host.querySelector(`[data-tool=${id}]`);
}

async function settle(ms = 0): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
}

/** The connection stands and the first picture is there. */
async function connect(): Promise<void> {
  await settle();
  last().dispatchEvent(new Event('connect'));
  await settle(3100);
}

function show(options: Partial<ConsoleOptions> = {}): void {
  const events = {
    subscribe: (listener: (event: LabEvent) => void) => {
      tell = listener;
      return () => undefined;
    }
  };
  view = new ConsoleView(host, { machine: 'web', baseUrl: '/user/x/', api, events, ...options });
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal('ResizeObserver', Nothing);
  vi.stubGlobal('IntersectionObserver', Nothing);
  vi.stubGlobal('WebSocket', FakeSocket);
  host = document.createElement('div');
  document.body.append(host);
  calls.length = 0;
  Object.assign(model, { state: 'running', doing: null });
  fail = null;
  // jsdom draws nothing
  HTMLCanvasElement.prototype.getContext = () => null;
});

afterEach(() => {
  view.dispose();
  host.remove();
  vi.useRealTimers();
});

describe('a console', () => {
  it('connects below the base URL and becomes live', async () => {
    show();
    await connect();
    expect(socket().url).toBe('ws://localhost:3000/user/x/vmlab/consoles/web/vnc');
    expect(socket().protocols).toEqual(['binary']);
    expect(root().dataset.face).toBe('live');
  });

  it('uses the URL that it is given, and has no actions without an API', async () => {
    show({ wsUrl: 'ws://127.0.0.1:7000/?token=t', api: undefined, events: undefined });
    await connect();
    expect(socket().url).toBe('ws://127.0.0.1:7000/?token=t');
    expect(tool('snapshot')).toBeNull();
    expect(tool('power')).toBeNull();
    expect(tool('keys')).not.toBeNull();
  });

  it('marks what can have the focus, so that JupyterLab runs no shortcut', async () => {
    show();
    await connect();
    for (const element of [last().canvas, shield(), ...host.querySelectorAll('button')]) {
      expect(element.getAttribute('data-lm-suppress-shortcuts')).toBe('true');
    }
  });

  it('takes everything out of the page when it is disposed', async () => {
    show();
    await connect();
    view.dispose();
    expect(host.children).toHaveLength(0);
    expect(last().open).toBe(false);
  });
});

describe('keyboard and mouse', () => {
  it('belong to the page until it is clicked', async () => {
    show();
    await connect();
    expect(last().viewOnly).toBe(true);
    shield().click();
    expect(last().viewOnly).toBe(false);
    expect(document.activeElement).toBe(last().canvas);
    expect(shield().hidden).toBe(true);
  });

  it('go back to the page by a click elsewhere, and held keys are let go in the guest', async () => {
    show();
    await connect();
    shield().click();
    last().canvas.dispatchEvent(new KeyboardEvent('keydown', { code: 'ShiftLeft', bubbles: true }));
    document.body.dispatchEvent(new Event('pointerdown', { bubbles: true }));
    expect(last().sent).toEqual([
      ['ShiftLeft', true],
      ['ShiftLeft', false]
    ]);
    expect(last().viewOnly).toBe(true);
    expect(document.activeElement).not.toBe(last().canvas);
  });

  it('do not reach what is around', async () => {
    show();
    await connect();
    const heard = vi.fn();
    document.addEventListener('keydown', heard);
    for (const element of [
      shield(),
      tool('power') as HTMLElement,
      host.querySelector('.vmlab-console-stage')
    ]) {
      element?.dispatchEvent(new KeyboardEvent('keydown', { key: 'd', bubbles: true }));
    }
    document.removeEventListener('keydown', heard);
    expect(heard).not.toHaveBeenCalled();
  });

  it('stay with the console through a revert', async () => {
    show();
    await connect();
    shield().click();
    tell({ kind: 'machine', machine: 'web', state: 'running', doing: 'revert' });
    socket().ends(4410);
    expect(document.activeElement).toBe(host.querySelector('.vmlab-console-stage'));
    expect(root().dataset.face).toBe('busy');
    expect(root().textContent).toContain('Reverting');
    const before = last();
    tell({ kind: 'machine', machine: 'web', state: 'running', doing: null });
    await connect();
    expect(last()).not.toBe(before);
    expect(document.activeElement).toBe(last().canvas);
    expect(last().viewOnly).toBe(false);
  });

  it('are never given when it is read-only', async () => {
    show({ readOnly: true });
    await connect();
    shield().click();
    expect(last().viewOnly).toBe(true);
    view.readOnly = false;
    shield().click();
    expect(last().viewOnly).toBe(false);
  });
});

describe('states', () => {
  it('offers Start when the machine is off, and starts it', async () => {
    model.state = 'off';
    show();
    await settle();
    socket().ends(4409);
    await settle();
    expect(root().dataset.face).toBe('off');
    const start = host.querySelector<HTMLButtonElement>('.vmlab-console-box button');
    expect(start?.textContent).toBe('Start');
    model.state = 'running';
    start?.click();
    expect(root().dataset.face).toBe('busy');
    await settle();
    expect(calls).toContainEqual(['POST', 'machines/web/start', {}]);
    await connect();
    expect(root().dataset.face).toBe('live');
  });

  it('says what went wrong, with the hint', async () => {
    show();
    await connect();
    fail = new ApiError('The disk is full.', 507, 'forget snapshots', 'NoSpace');
    tool('pause')?.click();
    await settle();
    const notice = host.querySelector<HTMLElement>('[role=alert]');
    expect(notice?.hidden).toBe(false);
    expect(notice?.textContent).toContain('The disk is full. forget snapshots');
    expect(root().dataset.face).toBe('live');
  });

  it('tells a stranger so', async () => {
    fail = new ApiError('Forbidden', 403);
    show();
    await settle();
    socket().ends(1006);
    await settle();
    expect(root().dataset.face).toBe('forbidden');
  });

  it('tells that the machine is gone, by an event or by the answer to a question', async () => {
    show();
    await connect();
    tell({ kind: 'machine-gone', machine: 'web' });
    expect(root().dataset.face).toBe('gone');
    view.dispose();
    fail = new ApiError('There is no machine named web.', 404, null, 'NotFound');
    show();
    await settle();
    expect(root().dataset.face).toBe('gone');
  });

  it('offers nothing to whoever only views', async () => {
    model.state = 'off';
    show({ readOnly: true });
    await settle();
    expect(root().dataset.face).toBe('off');
    expect(host.querySelector('.vmlab-console-box button')).toBeNull();
    view.readOnly = false;
    expect(host.querySelector('.vmlab-console-box button')?.textContent).toBe('Start');
  });

  it('counts down to the next attempt', async () => {
    show({ api: undefined, events: undefined });
    await settle();
    for (let n = 0; n < 5; n++) {
      socket().ends(1006);
      await settle(n < 4 ? 5000 : 0);
    }
    expect(root().dataset.face).toBe('waiting');
    const detail = (): string => host.querySelector('.vmlab-console-overlay')?.textContent ?? '';
    // Nobody is to be told each second.
    expect(host.querySelector('.vmlab-console-overlay [role=status]')?.textContent).not.toMatch(/\d/);
    const first = Number(/in (\d+) s/.exec(detail())?.[1]);
    await settle(2000);
    expect(Number(/in (\d+) s/.exec(detail())?.[1])).toBe(first - 2);
  });
});

describe('costs', () => {
  it('a minimised console has no connection; a click brings it back', async () => {
    const changed = vi.fn();
    show({ changed });
    await connect();
    const before = last();
    tool('minimise')?.click();
    expect(changed).toHaveBeenCalledWith({ minimised: true });
    expect(before.open).toBe(false);
    root().click();
    await connect();
    expect(last()).not.toBe(before);
    expect(view.minimised).toBe(false);
  });

  it('a minimised console keeps the focus and says what it is', async () => {
    show();
    await connect();
    expect(root().getAttribute('aria-label')).toBe('Screen of web');
    tool('minimise')?.focus();
    tool('minimise')?.click();
    expect(document.activeElement).toBe(root());
    expect(root().getAttribute('role')).toBe('button');
    expect(root().getAttribute('aria-label')).toBe('Restore the screen of web');
    root().dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
    expect(view.minimised).toBe(false);
    expect(document.activeElement).toBe(shield());
    expect(view.look).toEqual({ mode: 'fit', readOnly: false, minimised: false });
  });

  it('a minimised console asks for a picture once, and again when the machine has changed', async () => {
    const pictures: string[] = [];
    class FakeImage extends EventTarget {
      naturalWidth = 320;
      naturalHeight = 240;
      set src(url: string) {
        pictures.push(url);
      }
    }
    vi.stubGlobal('Image', FakeImage);
    show({ minimised: true });
    await settle(60_000);
    expect(pictures).toHaveLength(1);
    expect(pictures[0]).toContain('/api/machines/web/screen.png?width=320');
    model.state = 'paused';
    tell({ kind: 'machine', machine: 'web', state: 'paused', doing: null });
    await settle(60_000);
    expect(pictures).toHaveLength(2);
    model.state = 'off';
    tell({ kind: 'machine', machine: 'web', state: 'off', doing: null });
    await settle(60_000);
    expect(pictures).toHaveLength(2);
  });

  it('one that begins minimised does not connect', async () => {
    const before = vnc.FakeRFB.all.length;
    show({ minimised: true });
    await settle(100);
    expect(vnc.FakeRFB.all).toHaveLength(before);
  });
});

describe('the toolbar', () => {
  it('sends chords, also while the page has the keyboard', async () => {
    show();
    await connect();
    tool('keys')?.click();
    await settle();
    const items = [...host.querySelectorAll<HTMLElement>('[role=menuitem]')];
    items.find(item => item.textContent === 'Ctrl+Alt+Delete')?.click();
    expect(last().sent).toEqual([
      ['ControlLeft', true],
      ['AltLeft', true],
      ['Delete', true],
      ['Delete', false],
      ['AltLeft', false],
      ['ControlLeft', false]
    ]);
    expect(last().viewOnly).toBe(true);
    expect(host.querySelector('.vmlab-console-popup')).toBeNull();
  });

  it('asks for a name and takes a snapshot', async () => {
    show();
    await connect();
    tool('snapshot')?.click();
    const input = host.querySelector('input') as HTMLInputElement;
    expect(document.activeElement).toBe(input);
    input.value = 'clean';
    input.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
    await settle();
    expect(calls).toContainEqual(['POST', 'machines/web/snapshots', { name: 'clean' }]);
  });

  it('switches off only after a second question', async () => {
    show();
    await connect();
    tool('power')?.click();
    await settle();
    const items = [...host.querySelectorAll<HTMLElement>('[role=menuitem]')];
    items.find(item => item.textContent?.startsWith('Switch off'))?.click();
    expect(calls.filter(([method]) => method === 'POST')).toEqual([]);
    host.querySelector<HTMLButtonElement>('.vmlab-danger')?.click();
    await settle();
    expect(calls).toContainEqual(['POST', 'machines/web/kill', {}]);
  });

  describe('types text', () => {
    let release: () => void;

    /** Begin to type 100 characters; the server has been given the first 40. */
    async function begin(): Promise<HTMLElement> {
      const answered = vi.spyOn(api, 'post').mockImplementation((path, body) => {
        calls.push(['POST', path, body]);
        return new Promise(resolve => (release = () => resolve(null)));
      });
      onTestFinished(() => answered.mockRestore());
      show();
      await connect();
      tool('type')?.click();
      const popup = host.querySelector('.vmlab-console-popup') as HTMLElement;
      expect(popup.getAttribute('role')).toBe('dialog');
      (popup.querySelector('textarea') as HTMLTextAreaElement).value = 'x'.repeat(100);
      popup.querySelector<HTMLButtonElement>('.vmlab-console-help')?.click();
      await settle();
      return popup;
    }
    const pieces = (): number => calls.filter(([, path]) => path === 'machines/web/type').length;

    it('and goes on when something else is clicked', async () => {
      const popup = await begin();
      document.body.dispatchEvent(new Event('pointerdown', { bubbles: true }));
      tool('keys')?.click();
      window.dispatchEvent(new Event('resize'));
      await settle();
      for (let n = 1; n <= 3; n++) {
        expect(popup.isConnected).toBe(true);
        expect(pieces()).toBe(n);
        release();
        await settle();
      }
      expect(popup.isConnected).toBe(false);
      expect(host.querySelector<HTMLElement>('[role=alert]')?.hidden).toBe(true);
    });

    it('and says how far it got when it is stopped', async () => {
      const popup = await begin();
      popup.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }));
      expect(popup.isConnected).toBe(false);
      release();
      await settle();
      expect(pieces()).toBe(1);
      expect(host.querySelector('[role=alert]')?.textContent).toBe('Stopped after 40 of 100 characters.');
    });

    it('and stops when the console is taken away', async () => {
      await begin();
      view.dispose();
      release();
      await settle();
      expect(pieces()).toBe(1);
    });
  });

  it('puts into a menu what finds no room', async () => {
    show();
    await connect();
    const bar = host.querySelector('.vmlab-console-tools') as HTMLElement;
    const all = bar.children.length;
    (view as unknown as { _frame: { toolbar: { resize(width: number): void } } })._frame.toolbar.resize(300);
    expect(bar.children.length).toBeLessThan(all);
    expect(tool('minimise')).not.toBeNull();
    tool('more')?.click();
    await settle();
    expect(host.querySelectorAll('[role^=menuitem]').length).toBeGreaterThan(2);
  });
});
