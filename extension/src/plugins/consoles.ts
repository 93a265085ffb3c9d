import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILabShell, ILayoutRestorer } from '@jupyterlab/application';
import { WidgetTracker } from '@jupyterlab/apputils';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { ConsoleTab } from '../consoletab';
import type { ConsoleKind, IConsoleParts } from '../consoletab';
import type { LabModel } from '../model';
import { CommandIDs, ILabModel, SETTINGS } from '../tokens';

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
    const parts: IConsoleParts = {
      model,
      events: { subscribe: listener => model.subscribe(listener) },
      scaling: () => scaling
    };

    const newTab = (machine: string, kind: ConsoleKind): ConsoleTab => {
      const tab = new ConsoleTab(parts, machine, kind);
      tab.renamed.connect(sender => void tracker.save(sender));
      void tracker.add(tab);
      return tab;
    };
    const open = (machine: string, kind: ConsoleKind): void => {
      const tab =
        // eslint-disable-next-line jupyter/require-disposable-transfer -- closing it, in the shell, disposes of it
        tracker.find(other => other.machine === machine && other.kind === kind) ?? newTab(machine, kind);
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
            }
          }
        }
      },
      execute: (args: ReadonlyPartialJSONObject) =>
        open(String(args['machine']), args['kind'] === 'serial' ? 'serial' : 'vnc')
    });
    void restorer?.restore(tracker, {
      command: CommandIDs.openTab,
      args: ({ machine, kind }) => ({ machine, kind }),
      name: ({ machine, kind }) => `${kind}:${machine}`
    });

    document.addEventListener(OPEN_EVENT, event => {
      const detail: unknown = event instanceof CustomEvent && event.detail;
      if (detail && typeof detail === 'object' && 'machine' in detail) {
        event.preventDefault();
        open(String(detail.machine), 'kind' in detail && detail.kind === 'serial' ? 'serial' : 'vnc');
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
