import { DOMUtils, MainAreaWidget } from '@jupyterlab/apputils';
import { URLExt } from '@jupyterlab/coreutils';
import { terminalIcon } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

// Types only: the code is the bundle that notebooks use as well, so that a page holds one noVNC.
import type * as Bundle from './console';
import { screenIcon } from './icons';
import type { LabModel } from './model';
import type { ILabEvent } from './types';

export type ConsoleKind = 'vnc' | 'serial';

/** How a console is shown, as far as a person has chosen it. */
export type ConsoleLook = Partial<Bundle.Look>;

/** What the tabs need. */
export interface IConsoleParts {
  model: LabModel;
  /** Pushed events, as the views take them. */
  events: { subscribe(listener: (event: ILabEvent) => void): () => void };
  /** Whether a screen is scaled to its tab. */
  scaling: () => 'fit' | 'actual';
}

let bundle: Promise<typeof Bundle> | undefined;
let failures = 0;

function loadBundle(baseUrl: string): Promise<typeof Bundle> {
  if (!bundle) {
    // A page remembers that an address could not be loaded; a server that was away just now needs another one.
    const again = failures > 0 ? `?again=${failures}` : '';
    bundle = import(/* webpackIgnore: true */ URLExt.join(baseUrl, 'vmlab/static/console.js') + again);
    bundle.catch(() => {
      bundle = undefined;
      failures++;
    });
  }
  return bundle;
}

/** The screen or the serial line of a machine, in a tab. It goes with the machine when that gets another name. */
export class ConsoleTab extends MainAreaWidget<ConsoleHost> {
  constructor(
    private _parts: IConsoleParts,
    machine: string,
    readonly kind: ConsoleKind,
    look: ConsoleLook = {},
    /** The machine's UUID, where it is known from before. */
    private _uuid: string | null = null
  ) {
    super({ content: new ConsoleHost(_parts, kind, look) });
    this.id = DOMUtils.createDomID();
    this.title.closable = true;
    this.title.icon = kind === 'vnc' ? screenIcon : terminalIcon;
    this.toolbar.hide();
    this.addClass('jp-vmlab-console-tab');
    this._machine = machine;
    this.content.open(machine);
    _parts.model.changed.connect(this._onChanged, this);
    this._onChanged();
  }

  get machine(): string {
    return this._machine;
  }

  /** What it is called where tabs are remembered: the same when the machine gets another name. */
  get key(): string {
    return `${this.kind}:${this._uuid ?? this._machine}`;
  }

  get uuid(): string | null {
    return this._uuid;
  }

  /** The machine has another name now. */
  get renamed(): ISignal<this, string> {
    return this._renamed;
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this._parts.model.changed.disconnect(this._onChanged, this);
    Signal.clearData(this);
    super.dispose();
  }

  private _onChanged(): void {
    const { model } = this._parts;
    const machine = model.machines.find(other => other.uuid === this._uuid) ?? model.machine(this._machine);
    this._uuid = machine?.uuid ?? this._uuid;
    if (machine && machine.name !== this._machine) {
      this._machine = machine.name;
      this.content.open(machine.name);
      this._renamed.emit(machine.name);
    }
    const state = machine?.state ?? (model.loaded ? 'gone' : 'unknown');
    const serial = this.kind === 'serial' ? ' (serial)' : '';
    this.title.label = this._machine + serial;
    this.title.caption = `${this._machine}${serial}: ${state}`;
    this.title.className = `jp-vmlab-tab jp-mod-${state}`;
  }

  private _machine: string;
  private _renamed = new Signal<this, string>(this);
}

/** The element that the framework-free view lives in. */
export class ConsoleHost extends Widget {
  constructor(
    private _parts: IConsoleParts,
    private _kind: ConsoleKind,
    private _look: ConsoleLook
  ) {
    super();
    this.addClass('jp-vmlab-console-host');
    this.node.tabIndex = -1;
  }

  get look(): ConsoleLook {
    return this._look;
  }

  /** A person wants to see it another way. */
  get lookChanged(): ISignal<this, void> {
    return this._lookChanged;
  }

  /** Show the console of a machine in place of what was shown. */
  open(machine: string): void {
    void this._open(machine);
  }

  override dispose(): void {
    this._close();
    Signal.clearData(this);
    super.dispose();
  }

  protected override onActivateRequest(msg: Message): void {
    super.onActivateRequest(msg);
    if (this._view) {
      this._view.focus();
    } else {
      this.node.focus();
    }
  }

  private _close(): void {
    this._view?.dispose();
    this._view = null;
    this.node.textContent = '';
  }

  private async _open(machine: string): Promise<void> {
    this._close();
    this._machine = machine;
    const { baseUrl } = this._parts.model.api.settings;
    try {
      const { ConsoleView, SerialView } = await loadBundle(baseUrl);
      if (this.isDisposed || this._machine !== machine) {
        return;
      }
      const View = this._kind === 'vnc' ? ConsoleView : SerialView;
      this._view = new View(this.node, {
        machine,
        baseUrl,
        api: this._parts.model.api,
        events: this._parts.events,
        mode: this._parts.scaling(),
        ...this._look,
        changed: change => {
          this._look = { ...this._look, ...change };
          this._lookChanged.emit();
        }
      });
      if (this.node.contains(document.activeElement)) {
        this._view.focus();
      }
    } catch {
      this._offerRetry(machine);
    }
  }

  private _offerRetry(machine: string): void {
    if (this.isDisposed) {
      return;
    }
    const text = document.createElement('p');
    text.textContent = 'The console could not be loaded from the Jupyter server.';
    const again = document.createElement('button');
    again.className = 'jp-vmlab-text-button';
    again.textContent = 'Try again';
    again.onclick = () => this.open(machine);
    this.node.replaceChildren(text, again);
  }

  private _lookChanged = new Signal<this, void>(this);
  private _machine = '';
  private _view: Bundle.ConsoleView | Bundle.SerialView | null = null;
}
