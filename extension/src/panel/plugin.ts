import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { CommandToolbarButton, Toolbar } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';

import type { LabModel } from '../lab/model';
import { ILabModel } from '../lab/token';
import { createMachine } from '../making/dialog';
import { CommandIDs, PANEL_ID, SETTINGS } from '../tokens';
import { Actions } from './actions';
import { addCommands } from './commands';
import { MachinesPanel } from './panel';
import { Screens } from './screens';
import { PanelState } from './state';

/** The left panel, and the commands on machines and snapshots. */
export const panelPlugin: JupyterFrontEndPlugin<void> = {
  id: SETTINGS,
  description: 'The panel of machines and snapshots, and their commands.',
  autoStart: true,
  requires: [ILabModel],
  // Pages of Notebook 7 need not have these.
  optional: [ICommandPalette, ILayoutRestorer, ISettingRegistry],
  activate: (
    app: JupyterFrontEnd,
    model: LabModel,
    palette: ICommandPalette | null,
    restorer: ILayoutRestorer | null,
    settings: ISettingRegistry | null
  ): void => {
    const state = new PanelState(model);
    const actions = new Actions(model);
    const screens = new Screens(model);
    const { commands } = app;

    addCommands({
      app,
      model,
      state,
      actions,
      palette,
      create: async image => {
        const made = await createMachine(model, image);
        if (made) {
          const { machine, watched } = made;
          if (watched) {
            state.focus(machine.name);
          }
          Notification.success(`${machine.name} is ${machine.state}.`, {
            actions: [
              {
                label: 'Open Console',
                callback: () =>
                  void commands.execute(CommandIDs.console, {
                    machine: machine.name
                  })
              }
            ]
          });
        }
      }
    });

    const panel = new MachinesPanel({
      model,
      state,
      actions,
      commands,
      screens
    });
    panel.toolbar.addItem('title', title());
    panel.toolbar.addItem('spacer', Toolbar.createSpacerItem());
    panel.toolbar.addItem(
      'create',
      new CommandToolbarButton({
        commands,
        id: CommandIDs.create,
        args: { toolbar: true }
      })
    );
    restorer?.add(panel, PANEL_ID);
    app.shell.add(panel, 'left', { rank: 350, type: 'Virtual machines' });

    void settings?.load(SETTINGS).then(loaded => {
      const apply = (): void => {
        screens.interval = Number(loaded.composite['thumbnailInterval']) * 1000;
      };
      loaded.changed.connect(apply);
      apply();
    });
  }
};

function title(): Widget {
  const widget = new Widget();
  widget.addClass('jp-vmlab-title');
  widget.node.textContent = 'Virtual Machines';
  return widget;
}
