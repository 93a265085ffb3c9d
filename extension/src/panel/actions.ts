import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';

import { choices, labelOf, nearest } from '../comparisons/comparison';
import { askTexts, showTrouble } from '../dialogs';
import type { IComparison } from '../lab/api';
import type { Verb } from '../lab/api';
import type { LabModel } from '../lab/model';
import type { IImage, IMachine, INode, ITree } from '../types';
import { count, LABEL, LABEL_RULE, NAME, NAME_RULE, size } from '../units';

/** In an empty field for a name. */
const CHOSEN = 'chosen for you if left empty';

/** Milliseconds: how long a notification with an offer stays. */
const OFFER = 10000;

/**
 * What people do to machines and snapshots, with the questions and the answers on screen.
 */
export class Actions {
  constructor(private _model: LabModel) {}

  act(machine: string, verb: Verb): Promise<void> {
    return this._try(machine, verb, () => this._model.api.act(machine, verb));
  }

  /** Take a snapshot at once, under the next free name. */
  snapshot(machine: string, values: { name?: string; description?: string } = {}): Promise<void> {
    return this._try(machine, 'snapshot', async () => {
      const taken = await this._model.api.snapshot(machine, values);
      const pause =
        taken.live && typeof taken.pause_ms === 'number'
          ? ` The guest stood still for ${Math.round(taken.pause_ms)} ms.`
          : '';
      Notification.success(`Snapshot “${taken.name}” of ${machine} taken.${pause}`);
    });
  }

  async snapshotNamed(machine: string): Promise<void> {
    const texts = await askTexts(
      `Take a Snapshot of ${machine}`,
      [
        { label: 'Name', placeholder: CHOSEN, pattern: LABEL, wrong: LABEL_RULE },
        { label: 'Description', placeholder: 'none' }
      ],
      'Take Snapshot'
    );
    if (texts) {
      const [name, description] = texts;
      await this.snapshot(machine, { ...(name && { name }), ...(description && { description }) });
    }
  }

  /** Go back. No question first: it can be undone, and the notification says so. */
  revert(machine: string, snapshot: INode): Promise<void> {
    return this._try(machine, 'revert', async () => {
      await this._model.api.revert(machine, snapshot.id);
      Notification.success(`${machine} is back at “${snapshot.name}”. The present that it left is kept.`, {
        autoClose: OFFER,
        actions: [
          {
            label: 'Undo',
            caption: `Bring back what ${machine} was before`,
            callback: () => void this.act(machine, 'undo')
          }
        ]
      });
    });
  }

  fork(
    machine: string,
    snapshot?: INode,
    copies: { count: number } | { names: string[] } = { count: 1 }
  ): Promise<void> {
    return this._try(machine, 'fork', async () => {
      const made = await this._model.api.fork(machine, {
        ...(snapshot ? { snapshot: snapshot.id } : {}),
        ...copies
      });
      const names = made.map(one => one.name).join(', ');
      Notification.success(`New from ${snapshot ? `“${snapshot.name}” of ` : ''}${machine}: ${names}`);
    });
  }

  async forkMany(machine: string, snapshot?: INode): Promise<void> {
    const texts = await askTexts(
      snapshot ? `Fork from “${snapshot.name}” of ${machine}` : `Fork ${machine}`,
      [
        {
          label: 'Names of the new machines',
          placeholder: CHOSEN,
          pattern: `\\s*${NAME}([\\s,]+${NAME})*[\\s,]*`,
          wrong: `Write them with spaces between. ${NAME_RULE}`
        },
        { label: 'How many, if no names are given', value: '2', range: [1, 100] }
      ],
      'Fork'
    );
    if (texts) {
      const names = texts[0].split(/[\s,]+/).filter(Boolean);
      await this.fork(machine, snapshot, names.length ? { names } : { count: Number(texts[1]) });
    }
  }

  /** @returns whether it worked; the name that was typed stays on screen otherwise. */
  async rename(machine: string, name: string): Promise<boolean> {
    return this._succeeds(machine, 'rename', () => this._model.api.rename(machine, name));
  }

  /** @param machine - In whose tree it stands: it may be of the one that this was forked from. */
  async renameSnapshot(machine: string, node: INode, name: string): Promise<boolean> {
    return this._succeeds(machine, 'rename', async () => {
      await this._model.api.renameSnapshot(node.id, name);
      await this._model.readTree(machine);
    });
  }

  async describe(machine: IMachine): Promise<void> {
    const text = await askText(`Describe ${machine.name}`, machine.description);
    if (text !== null) {
      await this._try(machine.name, 'describe', () => this._model.api.describe(machine.name, text));
    }
  }

  async describeSnapshot(machine: string, node: INode): Promise<void> {
    const text = await askText(`Describe “${node.name}”`, node.description);
    if (text !== null) {
      await this._try(machine, 'describe', async () => {
        await this._model.api.describeSnapshot(node.id, text);
        await this._model.readTree(machine);
      });
    }
  }

  /** Ask what a machine as it is now, or a snapshot of it, is to be compared with. */
  async chooseComparison(machine: string, node?: INode): Promise<IComparison | null> {
    const what = node ? `“${node.name}” of ${machine}` : machine;
    try {
      const found = choices(await this._model.api.tree(machine), this._model.machines, node);
      if (found.length === 0) {
        Notification.info(`There is nothing to compare ${what} with yet. Take a snapshot first.`);
        return null;
      }
      const result = await InputDialog.getItem({
        title: `Compare ${what}`,
        label: 'With',
        items: found.map(choice => choice.label),
        okLabel: 'Compare'
      });
      return found.find(choice => result.button.accept && choice.label === result.value) ?? null;
    } catch (error) {
      showTrouble(error);
      return null;
    }
  }

  /** Ask which snapshot of a machine is meant. */
  async chooseSnapshot(
    title: string,
    machine: string,
    fits: (node: INode) => boolean
  ): Promise<{ tree: ITree; node: INode } | null> {
    try {
      const tree = await this._model.api.tree(machine);
      const nodes = nearest(tree).filter(fits);
      if (nodes.length === 0) {
        Notification.info(`${machine} has no snapshot for that. Take one first.`);
        return null;
      }
      const labels = nodes.map(node => labelOf(tree, node));
      const items = nodes.map(({ id }, index) =>
        labels.filter(label => label === labels[index]).length > 1 ? `${labels[index]}, ${id}` : labels[index]
      );
      const result = await InputDialog.getItem({
        title: `${title}: ${machine}`,
        label: 'Snapshot',
        items,
        okLabel: 'Choose'
      });
      const node = result.button.accept ? nodes[items.indexOf(result.value ?? '')] : undefined;
      return node ? { tree, node } : null;
    } catch (error) {
      showTrouble(error);
      return null;
    }
  }

  /** Build an image; the model tells how far it is. */
  async build(image: IImage): Promise<void> {
    try {
      await this._model.api.build(image.name);
      Notification.success(`The image “${image.name}” is built.`);
    } catch (error) {
      showTrouble(error);
    }
  }

  async verify(machine: string, node: INode): Promise<void> {
    const id = Notification.emit(
      `Verifying “${node.name}” of ${machine}: ` +
        (node.live ? 'it is continued in a throw-away guest …' : 'its disks are read …'),
      'in-progress',
      { autoClose: false }
    );
    try {
      const found = await this._model.api.verify(node.id);
      const same = [
        found.registers && 'registers',
        found.ram && 'RAM',
        found.screen && 'screen',
        found.disk_contents && 'disks'
      ].filter(Boolean);
      Notification.update({
        id,
        type: found.ok ? 'success' : 'error',
        message: found.ok
          ? `“${node.name}” continues exactly where it was taken: ${same.join(', ') || 'its files'} identical.`
          : `“${node.name}” would not continue exactly: ${found.differences.join('; ')}`,
        autoClose: found.ok ? OFFER : false
      });
    } catch (error) {
      Notification.dismiss(id);
      showTrouble(error);
    }
  }

  async forget(machine: string, node: INode): Promise<void> {
    const result = await showDialog({
      title: `Forget “${node.name}”?`,
      body:
        `The snapshot goes out of the tree of ${machine}, and with it what nothing else is built on ` +
        `(at most ${size(node.size)}). Snapshots taken after it stay. This cannot be undone.`,
      buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Forget Snapshot' })],
      defaultButton: 0
    });
    if (result.button.accept) {
      await this._try(machine, 'forget', async () => {
        await this._model.api.forget(node.id);
        await this._model.readTree(machine);
      });
    }
  }

  async delete(machine: IMachine): Promise<void> {
    const result = await showDialog({
      title: `Delete ${machine.name}?`,
      body: await this._whatGoes(machine),
      buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: 'Delete Machine' })],
      defaultButton: 0
    });
    if (result.button.accept) {
      await this._try(machine.name, 'delete', () => this._model.api.delete(machine.name));
    }
  }

  private async _whatGoes(machine: IMachine): Promise<string> {
    const usage = this._model.usage(machine.name);
    const tree = await this._model.api.tree(machine.name).catch(() => null);
    const own =
      tree?.snapshots.filter(node => node.kind === 'snapshot' && node.machine === machine.name) ?? [];
    const goes = [
      usage ? `its disks (${size(usage.disk)})` : 'its disks',
      own.length
        ? `${count(own.length, 'snapshot')} (${size(own.reduce((sum, node) => sum + node.size, 0))})`
        : '',
      machine.can_undo ? 'the present kept from before its last revert' : ''
    ].filter(Boolean);
    const list = goes.length > 1 ? `${goes.slice(0, -1).join(', ')} and ${goes[goes.length - 1]}` : goes[0];
    return (
      (machine.state === 'running' ? 'It runs, and is ended at once. ' : '') +
      `With it goes ${list}. Machines forked from it stay. This cannot be undone.`
    );
  }

  private async _try(machine: string, verb: string, call: () => Promise<unknown>): Promise<void> {
    await this._succeeds(machine, verb, call);
  }

  private async _succeeds(machine: string, verb: string, call: () => Promise<unknown>): Promise<boolean> {
    try {
      await this._model.during(machine, verb, call);
      return true;
    } catch (error) {
      showTrouble(error);
      return false;
    }
  }
}

async function askText(title: string, text: string): Promise<string | null> {
  const result = await InputDialog.getText({
    title,
    label: 'Description',
    text,
    okLabel: 'Save'
  });
  return result.button.accept ? (result.value ?? '').trim() : null;
}
