import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import type { IDisposable } from '@lumino/disposable';

import type { LabModel } from '../lab/model';
import { ILabModel } from '../lab/token';
import { CommandIDs, SETTINGS } from '../tokens';
import { StatusItem } from './item';

/** The status bar's item, where there is a status bar. */
export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:status',
  description: 'Machines running and memory taken, in the status bar.',
  autoStart: true,
  requires: [ILabModel],
  // Notebook 7 has no status bar, and warns of a plugin that needs one.
  optional: [IStatusBar, ISettingRegistry],
  activate: async (
    app: JupyterFrontEnd,
    model: LabModel,
    statusBar: IStatusBar | null,
    registry: ISettingRegistry | null
  ): Promise<void> => {
    if (!statusBar || !registry) {
      return;
    }
    const settings = await registry.load(SETTINGS);
    let shown: IDisposable | null = null;
    const apply = (): void => {
      if (settings.composite['statusBar'] !== true) {
        shown?.dispose();
        shown = null;
      } else if (!shown) {
        shown = statusBar.registerStatusItem('vmlab:status', {
          item: new StatusItem(model, () => void app.commands.execute(CommandIDs.panel)),
          align: 'left',
          rank: 20
        });
      }
    };
    settings.changed.connect(apply);
    apply();
  }
};
