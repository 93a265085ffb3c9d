/**
 * Consoles in notebooks whose kernel has gone: live all the same, as they never needed it.
 *
 * Widgets do not survive the end of their kernel; after a reload ipywidgets writes "model not found" in their place,
 * whatever else the output holds. So the output of a console has a MIME type of ours, which names the widget: it shows
 * that, and when it is lost, the console itself; of a machine that this server does not know (a notebook from
 * elsewhere), the picture that was saved. The widget's own MIME type is not in the output (vmlab/notebook/console.py):
 * who exports a notebook would prefer it to the picture.
 */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { MimeModel } from '@jupyterlab/rendermime';
import type { IRenderMime, IRenderMimeRegistry } from '@jupyterlab/rendermime';
import { Panel, Widget } from '@lumino/widgets';

import type { LabModel } from '../lab/model';
import { ILabModel } from '../lab/token';
import { CommandIDs } from '../tokens';
import { ConsoleHost } from './host';
import type { ConsoleKind, IConsoleParts } from './host';

const SAVED = 'application/vnd.vmlab.console+json';
const VIEW = 'application/vnd.jupyter.widget-view+json';
/** What ipywidgets' renderer writes; there is no other sign. */
const LOADING = 'Loading widget...';
const LOST = 'Error displaying widget: model not found';
/** Milliseconds between two looks whether ipywidgets knows the kernel, while it loads. */
const POLL = 300;
/** Milliseconds after which a widget that still loads is waited for no longer: its kernel is starting, or there is none. */
const PATIENCE = 3000;
/** ipywidgets has -10; the lowest comes first. */
const RANK = -20;

/** The part of JupyterLab's notebook panel that is needed. */
interface INotebookPanel {
  content: { rendermime: IRenderMimeRegistry };
}

/** What a console's output says of it; what was saved by an earlier version has no UUIDs. */
interface ISaved {
  machines?: string[];
  uuids?: string[];
  kind?: string;
  model_id?: string;
}

/** Return a model with the widget's view; null where there was no widget. */
function withView(model: IRenderMime.IMimeModel): IRenderMime.IMimeModel | null {
  const { model_id } = model.data[SAVED] as ISaved;
  if (VIEW in model.data || model_id === undefined) {
    return VIEW in model.data ? model : null;
  }
  const view = { version_major: 2, version_minor: 0, model_id };
  return new MimeModel({
    trusted: model.trusted,
    data: { ...model.data, [VIEW]: view },
    metadata: model.metadata
  });
}

class SavedConsole extends Panel implements IRenderMime.IRenderer {
  private _watch: MutationObserver | null = null;
  private _poll: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly _registry: IRenderMimeRegistry,
    private readonly _parts: IConsoleParts
  ) {
    super();
  }

  override dispose(): void {
    this._stop();
    super.dispose();
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._clear();
    const viewed = withView(model);
    if (viewed === null || !this._registry.mimeTypes.includes(VIEW)) {
      return this._showOwn(model);
    }
    const factory = this._registry.getFactory(VIEW);
    const began = Date.now();
    const view = this._registry.createRenderer(VIEW);
    this.addWidget(view);
    // ipywidgets gives the kernel to the renderers that it finds in the outputs, but not to one within ours: it has to
    // be made anew when the registry has a factory that knows the kernel.
    this._poll = setInterval(() => {
      if (this._registry.getFactory(VIEW) !== factory) {
        void this.renderModel(model);
      } else if (Date.now() - began > PATIENCE) {
        void this._showOwn(model);
      }
    }, POLL);
    this._watch = new MutationObserver(() => {
      if (view.node.textContent === LOST) {
        void this._showOwn(model);
      } else if (view.node.textContent !== LOADING) {
        clearInterval(this._poll);
      }
    });
    this._watch.observe(view.node, { childList: true, characterData: true });
    try {
      await view.renderModel(viewed);
    } catch (error) {
      // The one that was waited for no longer has come, and has no place.
      if (!view.isDisposed) {
        throw error;
      }
    }
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

  /** Show what needs no kernel. */
  private async _showOwn(model: IRenderMime.IMimeModel): Promise<void> {
    this._clear();
    const { machines = [], uuids = [], kind: name } = model.data[SAVED] as ISaved;
    const kind: ConsoleKind = name === 'serial' ? 'serial' : 'vnc';
    const lab = this._parts.model;
    await lab.ready;
    if (this.isDisposed || this.widgets.length > 0) {
      return;
    }
    // By its UUID alone: a notebook may come from where another machine has this name.
    const known = lab.machines.filter(({ uuid }) => uuids.includes(uuid));
    if (known.length === 0) {
      return this._showPicture(model, machines, kind);
    }
    const row = new Panel();
    row.addClass('jp-vmlab-saved');
    for (const machine of known) {
      row.addWidget(new ConsoleHost(this._parts, kind, machine.name, machine.uuid, {}));
    }
    this.addWidget(row);
  }

  private async _showPicture(
    model: IRenderMime.IMimeModel,
    machines: string[],
    kind: ConsoleKind
  ): Promise<void> {
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
      button.textContent = `Open ${machine}`;
      button.addEventListener('click', () => this._parts.popOut?.(machine, kind));
      buttons.node.append(button);
    }
    this.addWidget(buttons);
  }
}

export const savedPlugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:saved-consoles',
  description: 'Consoles in notebooks whose kernel has gone.',
  autoStart: true,
  requires: [ILabModel],
  activate: (app: JupyterFrontEnd, model: LabModel): void => {
    const parts: IConsoleParts = {
      model,
      scaling: () => 'fit',
      popOut: (machine, kind) => void app.commands.execute(CommandIDs.openTab, { machine, kind })
    };
    app.docRegistry.addWidgetExtension('Notebook', {
      createNew: panel => {
        // A notebook's own registry: there ipywidgets puts the renderer that knows the kernel.
        const { rendermime } = (panel as unknown as INotebookPanel).content;
        rendermime.addFactory(
          {
            safe: false,
            mimeTypes: [SAVED],
            createRenderer: () => new SavedConsole(rendermime, parts)
          },
          RANK
        );
      }
    });
  }
};
