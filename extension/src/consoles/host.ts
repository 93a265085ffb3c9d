import { URLExt } from '@jupyterlab/coreutils';
import type { Message } from '@lumino/messaging';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

// Types only: the code is the bundle that notebooks use as well, so that a page holds one noVNC.
import type * as Bundle from '../console';
import type { LabModel } from '../lab/model';

export type ConsoleKind = 'vnc' | 'serial';

/** How a console is shown, as far as a person has chosen it. */
export type ConsoleLook = Partial<Bundle.Look>;

/** What consoles need. */
export interface IConsoleParts {
  model: LabModel;
  /** Whether a screen is scaled to its tab. */
  scaling: () => 'fit' | 'actual';
  /** Shows the same console in a tab of its own; missing where it has one. */
  popOut?: (machine: string, kind: ConsoleKind) => void;
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

/** A live screen or serial line. It goes with its machine when that gets another name. */
export class ConsoleHost extends Widget {
  constructor(
    private _parts: IConsoleParts,
    readonly kind: ConsoleKind,
    private _machine: string,
    /** The machine's UUID, where it is known from before. */
    private _uuid: string | null,
    private _look: ConsoleLook
  ) {
    super();
    this.addClass('jp-vmlab-console-host');
    this.node.tabIndex = -1;
    _parts.model.changed.connect(this._follow, this);
    this._follow();
    void this._open();
  }

  get machine(): string {
    return this._machine;
  }

  get uuid(): string | null {
    return this._uuid;
  }

  /** The machine has another name now. */
  get renamed(): ISignal<this, void> {
    return this._renamed;
  }

  get look(): ConsoleLook {
    return this._look;
  }

  /** A person wants to see it another way. */
  get lookChanged(): ISignal<this, void> {
    return this._lookChanged;
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this._parts.model.changed.disconnect(this._follow, this);
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

  private _follow(): void {
    const { model } = this._parts;
    const machine = model.machines.find(other => other.uuid === this._uuid) ?? model.machine(this._machine);
    this._uuid = machine?.uuid ?? this._uuid;
    if (machine && machine.name !== this._machine) {
      this._machine = machine.name;
      void this._open();
      this._renamed.emit();
    }
  }

  private _close(): void {
    this._view?.dispose();
    this._view = null;
    this.node.textContent = '';
  }

  private async _open(): Promise<void> {
    this._close();
    const machine = this._machine;
    const { model, popOut, scaling } = this._parts;
    const { baseUrl } = model.api.settings;
    try {
      const { ConsoleView, SerialView } = await loadBundle(baseUrl);
      if (this.isDisposed || this._machine !== machine || this._view) {
        return;
      }
      const View = this.kind === 'vnc' ? ConsoleView : SerialView;
      this._view = new View(this.node, {
        machine,
        baseUrl,
        api: model.api,
        events: model,
        mode: scaling(),
        ...this._look,
        popOut: popOut && (() => popOut(machine, this.kind)),
        changed: change => {
          this._look = { ...this._look, ...change };
          this._lookChanged.emit();
        }
      });
      if (this.node.contains(document.activeElement)) {
        this._view.focus();
      }
    } catch {
      this._offerRetry();
    }
  }

  private _offerRetry(): void {
    if (this.isDisposed) {
      return;
    }
    const text = document.createElement('p');
    text.textContent = 'The console could not be loaded from the Jupyter server.';
    const again = document.createElement('button');
    again.className = 'jp-vmlab-text-button';
    again.textContent = 'Try again';
    again.onclick = () => void this._open();
    this.node.replaceChildren(text, again);
  }

  private _lookChanged = new Signal<this, void>(this);
  private _renamed = new Signal<this, void>(this);
  private _view: Bundle.ConsoleView | Bundle.SerialView | null = null;
}
