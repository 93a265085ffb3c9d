import { PanelWithToolbar, ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';

import { vmlabIcon } from '../icons';
import { PANEL_ID } from '../tokens';
import type { Screens } from './screens';
import type { IViewParts } from './tree';
import { PanelView } from './view';

/** Milliseconds between two readings of what machines take, while somebody looks. */
const USAGE_INTERVAL = 3000;

/** The left panel. Out of sight it asks for nothing. */
export class MachinesPanel extends PanelWithToolbar {
  constructor(private _parts: IViewParts & { screens: Screens }) {
    super();
    this.id = PANEL_ID;
    this.title.icon = vmlabIcon;
    this.title.caption = 'Virtual machines';
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Virtual machines');
    this.addClass('jp-vmlab-panel');
    const body = ReactWidget.create(React.createElement(PanelView, _parts));
    body.addClass('jp-vmlab-body');
    this.addWidget(this.toolbar);
    this.addWidget(body);
  }

  protected override onAfterShow(): void {
    this._watch(true);
  }

  protected override onAfterHide(): void {
    this._watch(false);
  }

  protected override onActivateRequest(): void {
    const first =
      this.node.querySelector<HTMLElement>('.jp-vmlab-card') ??
      this.node.querySelector<HTMLElement>('button');
    first?.focus();
  }

  private _watch(visible: boolean): void {
    this._parts.screens.active = visible;
    this._parts.model.wantUsage(this, visible ? USAGE_INTERVAL : null);
    if (visible) {
      void this._parts.model.reload();
    }
  }
}
