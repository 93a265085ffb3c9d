/**
 * Consoles in notebooks whose kernel has gone: their picture, and a way to open them again.
 *
 * Widgets do not survive the end of their kernel; after a reload ipywidgets writes "model not found" in their place,
 * whatever else the output holds. So the output of a console has a MIME type of ours as well, which comes before the
 * widget's: it shows the widget, and when that is lost, the picture that was saved beside it.
 */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import type { IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { Panel, Widget } from '@lumino/widgets';

const SAVED = 'application/vnd.vmlab.console+json';
const VIEW = 'application/vnd.jupyter.widget-view+json';
/** What ipywidgets' renderer writes; there is no other sign. */
const LOADING = 'Loading widget...';
const LOST = 'Error displaying widget: model not found';
/** Milliseconds between two looks whether ipywidgets knows the kernel, while it loads. */
const POLL = 300;
/** ipywidgets has -10; the lowest comes first. */
const RANK = -20;

/** The part of JupyterLab's notebook panel that is needed. */
interface NotebookPanel {
  content: { rendermime: IRenderMimeRegistry };
}

class SavedConsole extends Panel implements IRenderMime.IRenderer {
  private _watch: MutationObserver | null = null;
  private _poll: ReturnType<typeof setInterval> | undefined;

  constructor(private readonly _registry: IRenderMimeRegistry) {
    super();
  }

  override dispose(): void {
    this._stop();
    super.dispose();
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._clear();
    if (!(VIEW in model.data) || !this._registry.mimeTypes.includes(VIEW)) {
      return this._showSaved(model);
    }
    const factory = this._registry.getFactory(VIEW);
    const view = this._registry.createRenderer(VIEW);
    this.addWidget(view);
    // ipywidgets gives the kernel to the renderers that it finds in the outputs, but not to one within ours: it has to
    // be made anew when the registry has a factory that knows the kernel.
    this._poll = setInterval(() => {
      if (this._registry.getFactory(VIEW) !== factory) {
        void this.renderModel(model);
      }
    }, POLL);
    this._watch = new MutationObserver(() => {
      if (view.node.textContent === LOST) {
        void this._showSaved(model);
      } else if (view.node.textContent !== LOADING) {
        clearInterval(this._poll);
      }
    });
    this._watch.observe(view.node, { childList: true, characterData: true });
    await view.renderModel(model);
  }

  private _stop(): void {
    this._watch?.disconnect();
    clearInterval(this._poll);
  }

  private _clear(): void {
    this._stop();
    while (this.widgets.length > 0) {
      this.widgets[0].dispose();
    }
  }

  private async _showSaved(model: IRenderMime.IMimeModel): Promise<void> {
    this._clear();
    const saved = model.data[SAVED] as { machines?: unknown; kind?: unknown };
    const machines = Array.isArray(saved.machines) ? saved.machines : [];
    for (const type of ['image/png', 'text/plain']) {
      if (type in model.data) {
        const part = this._registry.createRenderer(type);
        this.addWidget(part);
        await part.renderModel(model);
      }
    }
    const buttons = new Widget();
    for (const machine of machines) {
      const button = document.createElement('button');
      button.className = 'jp-mod-styled jp-Button';
      button.textContent = `Open ${String(machine)}`;
      button.addEventListener('click', () =>
        document.dispatchEvent(
          new CustomEvent('vmlab:open-console', {
            detail: { machine: String(machine), kind: saved.kind },
            bubbles: true,
            cancelable: true
          })
        )
      );
      buttons.node.append(button);
    }
    this.addWidget(buttons);
  }
}

export const savedPlugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:saved-consoles',
  description: 'The picture of a console whose kernel has gone.',
  autoStart: true,
  activate: (app: JupyterFrontEnd): void => {
    app.docRegistry.addWidgetExtension('Notebook', {
      createNew: panel => {
        // A notebook's own registry: there ipywidgets puts the renderer that knows the kernel.
        const { rendermime } = (panel as unknown as NotebookPanel).content;
        rendermime.addFactory(
          {
            safe: false,
            mimeTypes: [SAVED],
            createRenderer: () => new SavedConsole(rendermime)
          },
          RANK
        );
      }
    });
  }
};
