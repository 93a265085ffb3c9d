import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILabShell, ILayoutRestorer } from '@jupyterlab/application';
import { WidgetTracker } from '@jupyterlab/apputils';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { LabModel } from '../lab/model';
import { ILabModel } from '../lab/token';
import { CommandIDs, SETTINGS } from '../tokens';
import type { ConsoleKind, ConsoleLook, IConsoleParts } from './host';
import { ConsoleTab } from './tab';

/** What a page may ask for without knowing JupyterLab: a console under a cell that is popped out. */
const OPEN_EVENT = 'vmlab:open-console';

/** The tabs with screens and serial lines. */
export const consolesPlugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:consoles',
  description: 'Screens and serial lines of machines in tabs.',
  autoStart: true,
  requires: [ILabModel],
  optional: [ILabShell, ILayoutRestorer, ISettingRegistry],
  activate: (
    app: JupyterFrontEnd,
    model: LabModel,
    labShell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    settings: ISettingRegistry | null
  ): void => {
    const tracker = new WidgetTracker<ConsoleTab>({
      namespace: 'vmlab-consoles'
    });
    let scaling: 'fit' | 'actual' = 'fit';
    const parts: IConsoleParts = { model, scaling: () => scaling };

    const newTab = (...what: [string, ConsoleKind, ConsoleLook?, (string | null)?]): ConsoleTab => {
      const tab = new ConsoleTab(parts, ...what);
      tab.content.lookChanged.connect(() => void tracker.save(tab));
      tab.content.renamed.connect(() => void tracker.save(tab));
      void tracker.add(tab);
      return tab;
    };
    const open = (machine: string, kind: ConsoleKind, look?: ConsoleLook, uuid?: string | null): void => {
      const known = tracker.find(({ content }) => content.machine === machine && content.kind === kind);
      // eslint-disable-next-line jupyter/require-disposable-transfer -- closing it, in the shell, disposes of it
      const tab = known ?? newTab(machine, kind, look, uuid);
      if (!tab.isAttached) {
        // A page of Notebook 7 has one document in its main area, and room below it.
        app.shell.add(tab, labShell ? 'main' : 'down', { type: 'Virtual machine' });
      }
      app.shell.activateById(tab.id);
    };

    app.commands.addCommand(CommandIDs.openTab, {
      label: 'Open the Console of a Machine',
      describedBy: {
        args: {
          type: 'object',
          required: ['machine'],
          properties: {
            machine: { type: 'string', description: 'Name of the machine' },
            kind: {
              enum: ['vnc', 'serial'],
              description: 'Its screen (the default) or its serial line'
            },
            uuid: { type: 'string', description: 'Its UUID, if it may have another name by now' },
            mode: { enum: ['fit', 'actual'], description: 'How a screen that is opened is scaled' },
            readOnly: { type: 'boolean', description: 'Whether a console that is opened is view only' },
            minimised: { type: 'boolean', description: 'Whether it is opened as a small picture' }
          }
        }
      },
      execute: (args: ReadonlyPartialJSONObject) => {
        if (typeof args['machine'] === 'string') {
          const uuid = typeof args['uuid'] === 'string' ? args['uuid'] : null;
          open(args['machine'], args['kind'] === 'serial' ? 'serial' : 'vnc', lookOf(args), uuid);
        }
      }
    });
    void restorer?.restore(tracker, {
      command: CommandIDs.openTab,
      args: ({ content: { machine, kind, uuid, look } }) => ({ machine, kind, uuid, ...look }),
      name: ({ key }) => key
    });

    document.addEventListener(OPEN_EVENT, event => {
      const detail: unknown = event instanceof CustomEvent && event.detail;
      if (detail && typeof detail === 'object') {
        // Without a machine it only asks whether there is anybody.
        event.preventDefault();
        if ('machine' in detail) {
          open(String(detail.machine), 'kind' in detail && detail.kind === 'serial' ? 'serial' : 'vnc');
        }
      }
    });

    void settings?.load(SETTINGS).then(loaded => {
      const apply = (): void => {
        scaling = loaded.composite['consoleScaling'] === 'actual' ? 'actual' : 'fit';
      };
      loaded.changed.connect(apply);
      apply();
    });
  }
};

function lookOf({ mode, readOnly, minimised }: ReadonlyPartialJSONObject): ConsoleLook {
  return {
    ...(mode === 'fit' || mode === 'actual' ? { mode } : {}),
    ...(typeof readOnly === 'boolean' ? { readOnly } : {}),
    ...(typeof minimised === 'boolean' ? { minimised } : {})
  };
}
