import { Notification } from '@jupyterlab/apputils';

import type { IJob, LabModel } from '../lab/model';
import type { IMachine, INewMachine } from '../types';

/** A machine that is being made. An image that is not there is built first, which takes minutes. */
export class Making {
  constructor(
    private _model: LabModel,
    readonly asked: INewMachine & { name: string }
  ) {
    this.outcome = this._make();
  }

  /** The machine, or why there is none. */
  readonly outcome: Promise<IMachine>;

  /** The machine, once it is there. */
  machine: IMachine | null = null;

  get progress(): IJob {
    const job = this._model.job('machine', this.asked.name);
    return { text: job?.text || 'Making the machine …', fraction: job?.fraction ?? null };
  }

  /**
   * Show in a notification how it goes on.
   *
   * @returns the machine; what went wrong is the caller's.
   */
  async inBackground(): Promise<IMachine> {
    let said = '';
    const say = (): { message: string; progress?: number } => {
      const { text, fraction } = this.progress;
      const progress = fraction === null ? undefined : Math.floor(fraction * 100) / 100;
      said = `${text} ${progress}`;
      return { message: `${this.asked.name}: ${text}`, progress };
    };
    const { message, progress } = say();
    const id = Notification.emit(message, 'in-progress', { autoClose: false, progress });
    const update = (): void => {
      const before = said;
      const now = say();
      if (said !== before) {
        Notification.update({ id, ...now });
      }
    };
    this._model.changed.connect(update);
    try {
      return await this.outcome;
    } finally {
      this._model.changed.disconnect(update);
      Notification.dismiss(id);
    }
  }

  private async _make(): Promise<IMachine> {
    this.machine = await this._model.api.create(this.asked);
    await this._model.reload();
    return this.machine;
  }
}
