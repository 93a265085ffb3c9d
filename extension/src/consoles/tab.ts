import { terminalIcon } from '@jupyterlab/ui-components';

import { screenIcon } from '../icons';
import { Tab } from '../tab';
import { ConsoleHost } from './host';
import type { ConsoleKind, ConsoleLook, IConsoleParts } from './host';

/** The screen or the serial line of a machine, in a tab. */
export class ConsoleTab extends Tab<ConsoleHost> {
  constructor(
    private _parts: IConsoleParts,
    machine: string,
    kind: ConsoleKind,
    look: ConsoleLook = {},
    uuid: string | null = null
  ) {
    super(new ConsoleHost(_parts, kind, machine, uuid, look), kind === 'vnc' ? screenIcon : terminalIcon);
    this.toolbar.hide();
    this.addClass('jp-vmlab-console-tab');
    _parts.model.changed.connect(this._onChanged, this);
    this.content.renamed.connect(this._onChanged, this);
    this._onChanged();
  }

  /** What it is called where tabs are remembered: the same when the machine gets another name. */
  get key(): string {
    const { kind, machine, uuid } = this.content;
    return `${kind}:${uuid ?? machine}`;
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this._parts.model.changed.disconnect(this._onChanged, this);
    super.dispose();
  }

  private _onChanged(): void {
    const { model } = this._parts;
    const { kind, machine: name } = this.content;
    const state = model.machine(name)?.state ?? (model.loaded ? 'gone' : 'unknown');
    const serial = kind === 'serial' ? ' (serial)' : '';
    this.title.label = name + serial;
    this.title.caption = `${name}${serial}: ${state}`;
    this.title.className = `jp-vmlab-tab jp-mod-${state}`;
  }
}
