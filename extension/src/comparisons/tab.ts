import { downloadIcon, refreshIcon, ToolbarButton } from '@jupyterlab/ui-components';

import { compareIcon, insideIcon } from '../icons';
import type { IComparison } from '../lab/api';
import { Tab } from '../tab';
import { fileOf, guarded, titleOf } from './comparison';
import { ComparisonView } from './view';
import type { IComparisonParts } from './view';

/** What differs between two states, in a tab. */
export class ComparisonTab extends Tab<ComparisonView> {
  constructor(
    parts: IComparisonParts,
    readonly comparison: IComparison,
    inside: boolean
  ) {
    const title = titleOf(comparison);
    super(new ComparisonView(parts, comparison, inside), compareIcon);
    this.title.label = title;
    this.title.caption = `What differs: ${title}`;
    this.toolbar.node.setAttribute('aria-label', `Comparison ${title}`);
    // Not JupyterLab's "main area content".
    this.content.node.setAttribute('aria-label', `What differs: ${title}`);
    this.toolbar.addItem('refresh', this._refresh);
    this.toolbar.addItem('inside', this._inside);
    this.toolbar.addItem('save', this._save);
    this.content.changed.connect(this._onChanged, this);
    this._onChanged();
  }

  private _onChanged(): void {
    const { html, inside } = this.content;
    this._inside.pressed = inside;
    this._save.enabled = html !== null;
  }

  private _refresh = new ToolbarButton({
    icon: refreshIcon,
    label: 'Refresh',
    tooltip: 'Compare again, as it is now',
    onClick: () => this.content.refresh()
  });

  private _inside = new ToolbarButton({
    icon: insideIcon,
    label: 'Ask Inside Too',
    tooltip: 'Compare also processes, ports, users, packages and settings; takes some seconds',
    pressedTooltip: 'Do not compare what is inside',
    onClick: () => {
      this.content.inside = !this.content.inside;
    }
  });

  private _save = new ToolbarButton({
    icon: downloadIcon,
    label: 'Save as HTML',
    tooltip: 'Download it as one file that needs nothing else',
    onClick: () => this._download()
  });

  private _download(): void {
    const { html } = this.content;
    if (html === null) {
      return;
    }
    const url = URL.createObjectURL(new Blob([guarded(html)], { type: 'text/html' }));
    const link = document.createElement('a');
    link.href = url;
    link.download = fileOf(this.comparison);
    link.click();
    // The browser may begin to read it only after this.
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}
