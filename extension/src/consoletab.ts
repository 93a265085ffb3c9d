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

/** What the tabs need. */
export interface IConsoleParts {
  model: LabModel;
  /** Pushed events, as the views take them. */
  events: { subscribe(listener: (event: ILabEvent) => void): () => void };
  /** Whether a screen is scaled to its tab. */
  scaling: () => 'fit' | 'actual';
}

let bundle: Promise<typeof Bundle> | undefined;

function loadBundle(baseUrl: string): Promise<typeof Bundle> {
  const url = URLExt.join(baseUrl, 'vmlab/static/console.js');
  bundle ??= import(/* webpackIgnore: true */ url);
  // A server that was away just now must not spoil the tab for good.
  bundle.catch(() => (bundle = undefined));
  return bundle;
}

/** The screen or the serial line of a machine, in a tab. It goes with the machine when that gets another name. */
export class ConsoleTab extends MainAreaWidget<ConsoleHost> {
  constructor(
    private _parts: IConsoleParts,
    machine: string,
    readonly kind: ConsoleKind
  ) {
    super({ content: new ConsoleHost(_parts, kind) });
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
    let machine = model.machine(this._machine);
    if (!machine && this._uuid) {
      machine = model.machines.find(other => other.uuid === this._uuid);
      if (machine) {
        this._machine = machine.name;
        this.content.open(machine.name);
        this._renamed.emit(machine.name);
      }
    }
    this._uuid = machine?.uuid ?? this._uuid;
    const state = machine?.state ?? (model.loaded ? 'gone' : 'unknown');
    const serial = this.kind === 'serial' ? ' (serial)' : '';
    this.title.label = this._machine + serial;
    this.title.caption = `${this._machine}${serial}: ${state}`;
    this.title.className = `jp-vmlab-tab jp-mod-${state}`;
  }

  private _machine: string;
  private _renamed = new Signal<this, string>(this);
  private _uuid: string | null = null;
}

/** The element that the framework-free view lives in. */
export class ConsoleHost extends Widget {
  constructor(
    private _parts: IConsoleParts,
    private _kind: ConsoleKind
  ) {
    super();
    this.addClass('jp-vmlab-console-host');
    this.node.tabIndex = -1;
  }

  /** Show the console of a machine in place of what was shown. */
  open(machine: string): void {
    void this._open(machine);
  }

  override dispose(): void {
    this._close();
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
        ...(this._kind === 'vnc' ? { mode: this._parts.scaling() } : {})
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

  private _machine = '';
  private _view: Bundle.ConsoleView | Bundle.SerialView | null = null;
}
