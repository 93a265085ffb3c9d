import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { LabModel } from '../lab/model';

/** What is being renamed in place: a machine, or a snapshot of it. */
export interface IEditing {
  machine: string;
  /** Its id; null: the machine itself. */
  snapshot: string | null;
}

/**
 * What the panel shows of the lab: which trees are open, and which name is being edited. Commands change it as well.
 */
export class PanelState {
  constructor(private _model: LabModel) {}

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get editing(): IEditing | null {
    return this._editing;
  }

  edit(editing: IEditing | null): void {
    this._editing = editing;
    if (editing?.snapshot) {
      this.setExpanded(editing.machine, true);
    }
    this._changed.emit();
  }

  isEditing(machine: string, snapshot: string | null): boolean {
    return this._editing?.machine === machine && this._editing.snapshot === snapshot;
  }

  /** Give the keyboard to the card of a machine, as soon as there is one. */
  focus(machine: string): void {
    this._focus = machine;
    this._changed.emit();
  }

  /** Whether the card of this machine is to take the keyboard, once. */
  takeFocus(machine: string): boolean {
    const take = this._focus === machine;
    if (take) {
      this._focus = null;
    }
    return take;
  }

  isExpanded(machine: string): boolean {
    return this._expanded.has(this._model.machine(machine)?.uuid ?? '');
  }

  setExpanded(machine: string, expanded: boolean): void {
    const uuid = this._model.machine(machine)?.uuid;
    if (!uuid || expanded === this._expanded.has(uuid)) {
      return;
    }
    if (expanded) {
      this._expanded.add(uuid);
    } else {
      this._expanded.delete(uuid);
    }
    this._changed.emit();
  }

  private _changed = new Signal<this, void>(this);
  private _editing: IEditing | null = null;
  private _focus: string | null = null;
  /** UUIDs: the same when a machine is renamed, others when its name is used again. */
  private _expanded = new Set<string>();
}
