import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import type { Message } from '@lumino/messaging';
import * as React from 'react';

import { vmlabIcon } from '../icons';
import type { LabModel } from '../lab/model';
import { count, size } from '../units';

/** Milliseconds between two readings of what machines take, for a figure in the status bar. */
const USAGE_INTERVAL = 20000;

/** How many machines run, and what they take; leads to the panel. */
export class StatusItem extends ReactWidget {
  constructor(
    private _model: LabModel,
    private _openPanel: () => void
  ) {
    super();
    this.addClass('jp-vmlab-status');
  }

  override dispose(): void {
    this._watch(false);
    super.dispose();
  }

  // What is there from the beginning is attached, and never told that it is shown.
  protected override onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    this._watch(this.isVisible);
  }

  protected override onBeforeDetach(msg: Message): void {
    super.onBeforeDetach(msg);
    this._watch(false);
  }

  protected override onAfterShow(): void {
    this._watch(true);
  }

  protected override onAfterHide(): void {
    this._watch(false);
  }

  private _watch(visible: boolean): void {
    this._model.wantUsage(this, visible ? USAGE_INTERVAL : null);
  }

  protected render(): React.ReactElement {
    return (
      <UseSignal signal={this._model.changed}>
        {() => {
          const { running, memoryTaken } = this._model;
          const text = `${count(running, 'machine')} running, ${size(memoryTaken)} taken`;
          return (
            <button
              type="button"
              className="jp-vmlab-status-button"
              title={`Virtual machines: ${text}`}
              aria-label={`Virtual machines: ${text}`}
              onClick={this._openPanel}
            >
              <vmlabIcon.react tag="span" width="16px" height="16px" />
              {running > 0 ? `${running} · ${size(memoryTaken)}` : '0'}
            </button>
          );
        }}
      </UseSignal>
    );
  }
}
