import { DOMUtils, MainAreaWidget } from '@jupyterlab/apputils';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { Widget } from '@lumino/widgets';

/** A tab of ours. Once it is closed nothing of it is left in the page. */
export class Tab<T extends Widget> extends MainAreaWidget<T> {
  constructor(content: T, icon: LabIcon) {
    super({ content });
    this.id = DOMUtils.createDomID();
    this.title.closable = true;
    this.title.icon = icon;
  }

  override dispose(): void {
    // JupyterLab's buttons are FAST elements. Their styles listen to a media query, which keeps each button for ever:
    // when it leaves the page, FAST takes the styles of its appearance away without ending what these have begun. It does
    // end that where the appearance changes.
    this.node.querySelectorAll('jp-button').forEach(button => button.removeAttribute('appearance'));
    super.dispose();
  }
}
