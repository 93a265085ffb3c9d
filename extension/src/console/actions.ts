/** What the toolbar does to the machine itself, through the REST API. */
import type { Connection } from './connection';
import type { Help } from './faces';
import { askLine, confirm } from './forms';
import type { Frame } from './frame';
import type { MenuItem } from './popup';
import type { Tool } from './toolbar';
import { type Api, failure, type MachineModel, type SnapshotModel } from './types';

export class Actions {
  private _model: MachineModel | null = null;

  constructor(
    private readonly _api: Api,
    private readonly _name: string,
    private readonly _frame: Frame,
    private readonly _connection: () => Connection
  ) {}

  /** Remember what the server said of the machine. */
  update(model: MachineModel): void {
    this._model = model;
  }

  /** Do what an overlay offers. */
  help(action: Help): void {
    if (action === 'retry') {
      this._connection().tell({ type: 'retry' });
      void this._connection().ask();
    } else {
      void this._act(action);
    }
  }

  tools(): Tool[] {
    const { machine: state, doing } = this._connection().state;
    const off = state === 'off' || state === 'suspended';
    const busy = doing !== null;
    return [
      {
        id: 'snapshot',
        label: 'Take a snapshot …',
        icon: 'snapshot',
        rank: 2,
        disabled: busy,
        run: anchor => this._snapshot(anchor)
      },
      {
        id: 'revert',
        label: 'Revert to a snapshot …',
        icon: 'revert',
        rank: 3,
        disabled: busy,
        menu: () => this._snapshots()
      },
      {
        id: 'undo',
        label: 'Undo the last revert',
        icon: 'undo',
        rank: 8,
        disabled: busy || !this._model?.can_undo,
        run: () => void this._act('undo')
      },
      state === 'paused' || state === 'asleep'
        ? {
            id: 'pause',
            label: state === 'asleep' ? 'Wake' : 'Resume',
            icon: 'resume',
            rank: 4,
            disabled: busy,
            run: () => void this._act('resume')
          }
        : {
            id: 'pause',
            label: 'Pause',
            icon: 'pause',
            rank: 4,
            disabled: busy || off,
            run: () => void this._act('pause')
          },
      { id: 'power', label: 'Power', icon: 'power', rank: 5, menu: () => this._power() }
    ];
  }

  private _path(rest = ''): string {
    return `machines/${encodeURIComponent(this._name)}${rest}`;
  }

  private _power(): MenuItem[] {
    const state = this._connection().state.machine;
    const off = state === 'off' || state === 'suspended';
    return [
      {
        label: state === 'suspended' ? 'Continue' : 'Start',
        disabled: !off,
        run: () => void this._act('start')
      },
      { label: 'Shut down', note: 'asks the guest', disabled: off, run: () => void this._act('stop') },
      {
        label: 'Switch off …',
        note: 'as if the plug were pulled',
        disabled: off,
        run: () =>
          confirm(
            this._frame.root,
            this._frame.toolbar.anchor('power'),
            { text: `Switch ${this._name} off? What it has not saved is lost.`, action: 'Switch off' },
            () => void this._act('kill')
          )
      }
    ];
  }

  private async _snapshots(): Promise<MenuItem[]> {
    const tree = (await this._api.get(this._path('/snapshots'))) as { snapshots: SnapshotModel[] };
    const items = tree.snapshots.map(snapshot => ({
      label: snapshot.name,
      note: [when(snapshot.created), snapshot.live ? '' : 'offline', snapshot.here ? 'you are here' : '']
        .filter(Boolean)
        .join(' · '),
      picture: snapshot.live
        ? this._api.url(`snapshots/${encodeURIComponent(snapshot.id)}/screen.png?width=96`)
        : undefined,
      run: () => void this._act('revert', { snapshot: snapshot.id })
    }));
    return items.length > 0 ? items.reverse() : [{ label: 'There are no snapshots yet.', disabled: true }];
  }

  private _snapshot(anchor: HTMLElement): void {
    askLine(
      this._frame.root,
      anchor,
      { label: 'Name of the snapshot', placeholder: 'a name, if you like', action: 'Take snapshot' },
      name => void this._act('snapshot', name ? { name } : {})
    );
  }

  private async _act(verb: string, body: object = {}): Promise<void> {
    const connection = this._connection();
    this._frame.hush();
    connection.tell({ type: 'machine', state: null, doing: verb, pushed: false });
    try {
      const answer = await this._api.post(this._path(verb === 'snapshot' ? '/snapshots' : `/${verb}`), body);
      if (verb !== 'snapshot') {
        const model = answer as MachineModel;
        this.update(model);
        connection.tell({ type: 'machine', state: model.state, doing: model.doing ?? null, pushed: true });
      }
    } catch (error) {
      const { message, hint } = failure(error);
      this._frame.notice(message, hint);
      connection.tell({ type: 'machine', state: null, doing: null, pushed: false });
    }
    await connection.ask(true);
  }
}

function when(created: string | null): string {
  if (created === null) {
    return '';
  }
  const date = new Date(created);
  return Number.isNaN(date.getTime())
    ? ''
    : date.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
}
