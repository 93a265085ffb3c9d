import type { IThemeManager } from '@jupyterlab/apputils';
import type { Message } from '@lumino/messaging';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { ApiError } from '../lab/api';
import type { IComparison } from '../lab/api';
import type { LabModel } from '../lab/model';
import { subjectOf, themed, titleOf } from './comparison';

/** What the tabs need. */
export interface IComparisonParts {
  model: LabModel;
  /** Missing where a page has but one theme. */
  themes: IThemeManager | null;
}

/** What is being compared, in words. */
const LAYERS: Record<string, string> = {
  files: 'files',
  inside: 'what is inside',
  screen: 'screens',
  registers: 'CPU registers',
  devices: 'devices',
  ram: 'RAM',
  disk: 'disks'
};

/** The server's page of a comparison, or that it is being made, or why there is none. */
export class ComparisonView extends Widget {
  constructor(
    private _parts: IComparisonParts,
    private _comparison: IComparison,
    private _asksInside: boolean
  ) {
    super();
    this.addClass('jp-vmlab-comparison');
    this.node.tabIndex = -1;
    _parts.model.changed.connect(this._tell, this);
    _parts.themes?.themeChanged.connect(this._show, this);
  }

  /** What is shown, or which layers are compared, is another. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The page that is shown; null while there is none. */
  get html(): string | null {
    return this._html;
  }

  /** Whether what is inside is compared as well. */
  get inside(): boolean {
    return this._asksInside;
  }

  set inside(inside: boolean) {
    this._asksInside = inside;
    this.refresh();
  }

  /** Compare, again. */
  refresh(): void {
    void this._compare();
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    // The server stops comparing when nobody waits for it.
    this._asking?.abort();
    this._parts.model.changed.disconnect(this._tell, this);
    this._parts.themes?.themeChanged.disconnect(this._show, this);
    super.dispose();
  }

  protected override onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    this._begin();
  }

  protected override onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._begin();
  }

  protected override onActivateRequest(msg: Message): void {
    super.onActivateRequest(msg);
    this.node.focus();
  }

  /** Compare when it is first seen: of tabs that come back with the page, nobody may ever look at most. */
  private _begin(): void {
    if (this.isVisible && !this._begun) {
      this.refresh();
    }
  }

  private async _compare(): Promise<void> {
    this._begun = true;
    this._asking?.abort();
    const asking = new AbortController();
    this._asking = asking;
    this._html = null;
    this._showWaiting();
    this._changed.emit();
    let html = '';
    let trouble: ApiError | null = null;
    try {
      html = await this._parts.model.api.diffPage(this._comparison, this._asksInside, asking.signal);
    } catch (error) {
      trouble = error instanceof ApiError ? error : new ApiError(String(error), 0);
    }
    if (this._asking !== asking || this.isDisposed) {
      return;
    }
    this._asking = null;
    this._said = null;
    if (trouble) {
      this._showTrouble(trouble);
    } else {
      this._html = html;
      this._show();
    }
    this._changed.emit();
  }

  private _showWaiting(): void {
    const waiting = document.createElement('div');
    waiting.className = 'jp-vmlab-comparison-waiting';
    const spinner = document.createElement('div');
    spinner.className = 'jp-SpinnerContent';
    spinner.setAttribute('aria-hidden', 'true');
    this._said = document.createElement('p');
    this._said.setAttribute('role', 'status');
    waiting.append(spinner, this._said);
    this.node.replaceChildren(waiting);
    this._tell();
  }

  /** Say what is being done. */
  private _tell(): void {
    if (this._said) {
      const { before, after } = this._comparison;
      const layer = this._parts.model.job('comparison', subjectOf(this._comparison))?.text;
      const text = `Comparing ${before} with ${after}${layer ? `: ${LAYERS[layer] ?? layer}` : ''} …`;
      if (this._said.textContent !== text) {
        this._said.textContent = text;
      }
    }
  }

  private _showTrouble(error: ApiError): void {
    const trouble = document.createElement('div');
    trouble.className = 'jp-vmlab-trouble';
    trouble.setAttribute('role', 'alert');
    for (const text of [error.message, error.hint && `Next: ${error.hint}`]) {
      if (text) {
        const line = document.createElement('p');
        line.textContent = text;
        trouble.append(line);
      }
    }
    const again = document.createElement('button');
    again.type = 'button';
    again.className = 'jp-vmlab-text-button';
    again.textContent = 'Try again';
    again.onclick = () => this.refresh();
    trouble.append(again);
    this.node.replaceChildren(trouble);
  }

  private _show(): void {
    if (this._html === null) {
      return;
    }
    const { themes } = this._parts;
    const style = getComputedStyle(document.body);
    const dark = themes?.theme ? !themes.isLight(themes.theme) : false;
    const frame = document.createElement('iframe');
    // All of it comes from guests: no scripts, no forms, no origin.
    frame.setAttribute('sandbox', '');
    frame.referrerPolicy = 'no-referrer';
    frame.title = `What differs: ${titleOf(this._comparison)}`;
    frame.srcdoc = themed(this._html, name => style.getPropertyValue(name), dark);
    // JupyterLab's class: the frame takes no part in the dragging of what is around it.
    const holder = document.createElement('div');
    holder.className = 'jp-IFrame';
    holder.append(frame);
    this.node.replaceChildren(holder);
  }

  private _asking: AbortController | null = null;
  private _begun = false;
  private _changed = new Signal<this, void>(this);
  private _html: string | null = null;
  private _said: HTMLElement | null = null;
}
