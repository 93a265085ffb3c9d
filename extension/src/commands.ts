import type { JupyterFrontEnd } from '@jupyterlab/application';
import { InputDialog } from '@jupyterlab/apputils';
import type { ICommandPalette } from '@jupyterlab/apputils';
import { addIcon, deleteIcon, editIcon, stopIcon, terminalIcon, undoIcon } from '@jupyterlab/ui-components';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Menu } from '@lumino/widgets';

import type { Actions } from './actions';
import {
  compareIcon,
  forkIcon,
  pauseIcon,
  powerIcon,
  revertIcon,
  screenIcon,
  snapshotIcon,
  startIcon,
  vmlabIcon
} from './icons';
import { stateOf } from './comparison';
import type { IComparison } from './comparison';
import type { LabModel } from './model';
import type { PanelState } from './panelstate';
import { CommandIDs, PANEL_ID } from './tokens';
import type { IMachine, INode, State } from './types';

export const CATEGORY = 'Virtual machines';

/** What can be done to a machine. */
interface IMachineCommand {
  id: string;
  /** On a button or in the menu of one machine. */
  label: string;
  /** What it does, for a tooltip; a name without it says enough. */
  caption?: string;
  icon?: LabIcon;
  /** In which states it makes sense; any if missing. */
  states?: State[];
  /** A further condition. */
  when?: (machine: IMachine) => boolean;
  run: (machine: IMachine) => Promise<void> | void;
}

/** What can be done to a snapshot of a machine. */
interface ISnapshotCommand {
  id: string;
  label: string;
  caption?: string;
  icon?: LabIcon;
  when?: (node: INode) => boolean;
  run: (machine: string, node: INode) => Promise<void> | void;
}

const ALIVE: State[] = ['running', 'paused', 'crashed'];

/** A machine's menu; null is a line. */
const MACHINE_MENU = [
  CommandIDs.console,
  CommandIDs.serial,
  null,
  CommandIDs.start,
  CommandIDs.pause,
  CommandIDs.resume,
  CommandIDs.stop,
  CommandIDs.kill,
  null,
  CommandIDs.snapshot,
  CommandIDs.snapshotNamed,
  CommandIDs.fork,
  CommandIDs.forkMany,
  CommandIDs.undo,
  CommandIDs.compare,
  CommandIDs.tree,
  null,
  CommandIDs.rename,
  CommandIDs.describe,
  CommandIDs.remove
];

const SNAPSHOT_MENU = [
  CommandIDs.revert,
  CommandIDs.forkSnapshot,
  null,
  CommandIDs.comparePresent,
  CommandIDs.compareSnapshot,
  null,
  CommandIDs.renameSnapshot,
  CommandIDs.describeSnapshot,
  CommandIDs.verify,
  null,
  CommandIDs.forget
];

/** Whom the commands act on, and through what. */
export interface ICommandParts {
  app: JupyterFrontEnd;
  model: LabModel;
  state: PanelState;
  actions: Actions;
  palette: ICommandPalette | null;
  /** Ask for a new machine. */
  create: (image?: string) => Promise<void>;
}

export function addCommands(parts: ICommandParts): void {
  const { app, model, palette } = parts;
  app.commands.addCommand(CommandIDs.panel, {
    label: 'Show Virtual Machines',
    caption: 'Machines, their screens and their snapshots',
    icon: vmlabIcon,
    describedBy: { args: {} },
    execute: () => app.shell.activateById(PANEL_ID)
  });
  app.commands.addCommand(CommandIDs.create, {
    label: args => (args['toolbar'] ? 'New' : 'New Machine…'),
    caption: 'Make a machine from an image',
    icon: addIcon,
    describedBy: {
      args: {
        type: 'object',
        properties: {
          image: { type: 'string', description: 'Name of the image' },
          toolbar: { type: 'boolean', description: 'For a toolbar' }
        }
      }
    },
    execute: args => parts.create(typeof args['image'] === 'string' ? args['image'] : undefined)
  });
  const ids: string[] = [CommandIDs.panel, CommandIDs.create];

  for (const command of machineCommands(parts)) {
    const fits = (machine: IMachine): boolean =>
      (command.states?.includes(machine.state) ?? true) && (command.when?.(machine) ?? true);
    app.commands.addCommand(command.id, {
      label: args => (args['machine'] ? command.label : inPalette(command)),
      caption: command.caption ?? '',
      icon: command.icon,
      describedBy: {
        args: {
          type: 'object',
          properties: {
            machine: {
              type: 'string',
              description: 'Name of the machine; asked for if missing'
            }
          }
        }
      },
      isEnabled: args => {
        const name = args['machine'];
        const machine = typeof name === 'string' ? model.machine(name) : null;
        return machine ? fits(machine) : model.machines.some(fits);
      },
      execute: async args => {
        const machine =
          typeof args['machine'] === 'string'
            ? model.machine(args['machine'])
            : await choose(command.label, model.machines.filter(fits));
        if (machine) {
          await command.run(machine);
        }
      }
    });
    ids.push(command.id);
  }

  for (const command of snapshotCommands(parts)) {
    app.commands.addCommand(command.id, {
      label: command.label,
      caption: command.caption ?? '',
      icon: command.icon,
      describedBy: {
        args: {
          type: 'object',
          required: ['machine', 'snapshot'],
          properties: {
            machine: { type: 'string', description: 'Name of the machine' },
            snapshot: { type: 'string', description: 'Id of the snapshot' }
          }
        }
      },
      isEnabled: args => {
        const node = findNode(model, args);
        return node !== undefined && (command.when?.(node) ?? true);
      },
      execute: async args => {
        const node = findNode(model, args);
        if (node) {
          await command.run(String(args['machine']), node);
        }
      }
    });
  }
  for (const command of ids) {
    palette?.addItem({ command, category: CATEGORY });
  }
}

function machineCommands(parts: ICommandParts): IMachineCommand[] {
  const { actions, app, state } = parts;
  const openTab =
    (kind: string) =>
    ({ name }: IMachine): Promise<void> =>
      app.commands.execute(CommandIDs.openTab, { machine: name, kind });
  const act = (verb: Parameters<Actions['act']>[1]) => (machine: IMachine) => actions.act(machine.name, verb);
  return [
    {
      id: CommandIDs.console,
      label: 'Open Console',
      caption: 'Its screen, in a tab',
      icon: screenIcon,
      run: openTab('vnc')
    },
    {
      id: CommandIDs.serial,
      label: 'Open Serial Console',
      caption: 'Its serial line, in a tab',
      icon: terminalIcon,
      run: openTab('serial')
    },
    {
      id: CommandIDs.start,
      label: 'Start',
      icon: startIcon,
      states: ['off', 'suspended', 'crashed'],
      run: act('start')
    },
    {
      id: CommandIDs.pause,
      label: 'Pause',
      caption: 'Stop its CPUs; it keeps its memory',
      icon: pauseIcon,
      states: ['running'],
      run: act('pause')
    },
    {
      id: CommandIDs.resume,
      label: 'Resume',
      icon: startIcon,
      states: ['paused'],
      run: act('resume')
    },
    {
      id: CommandIDs.stop,
      label: 'Shut Down',
      caption: 'Shut down: ask the guest to power off',
      icon: powerIcon,
      states: ['running', 'paused'],
      run: act('stop')
    },
    {
      id: CommandIDs.kill,
      label: 'Pull the Plug',
      caption: 'End it at once; what it had not written to its disk is lost',
      icon: stopIcon,
      states: ALIVE,
      run: act('kill')
    },
    {
      id: CommandIDs.snapshot,
      label: 'Take Snapshot',
      caption: 'Take a snapshot now',
      icon: snapshotIcon,
      states: ['running', 'paused', 'off'],
      run: machine => actions.snapshot(machine.name)
    },
    {
      id: CommandIDs.snapshotNamed,
      label: 'Take Snapshot as…',
      states: ['running', 'paused', 'off'],
      run: machine => actions.snapshotNamed(machine.name)
    },
    {
      id: CommandIDs.fork,
      label: 'Fork',
      caption: 'Fork: a new machine goes on from here',
      icon: forkIcon,
      run: machine => actions.fork(machine.name)
    },
    {
      id: CommandIDs.forkMany,
      label: 'Fork Several…',
      run: machine => actions.forkMany(machine.name)
    },
    {
      id: CommandIDs.undo,
      label: 'Undo Revert',
      caption: 'Bring back the present that the last revert left',
      icon: undoIcon,
      when: machine => machine.can_undo,
      run: act('undo')
    },
    {
      id: CommandIDs.compare,
      label: 'Compare with…',
      caption: 'What differs from a snapshot, or from another machine',
      icon: compareIcon,
      run: async machine => openComparison(app, await actions.chooseComparison(machine.name))
    },
    {
      id: CommandIDs.tree,
      label: 'Show Snapshots',
      icon: revertIcon,
      run: machine => {
        app.shell.activateById(PANEL_ID);
        state.setExpanded(machine.name, true);
      }
    },
    {
      id: CommandIDs.rename,
      label: 'Rename',
      icon: editIcon,
      run: machine => {
        app.shell.activateById(PANEL_ID);
        state.edit({ machine: machine.name, snapshot: null });
      }
    },
    {
      id: CommandIDs.describe,
      label: 'Describe…',
      run: machine => actions.describe(machine)
    },
    {
      id: CommandIDs.remove,
      label: 'Delete…',
      icon: deleteIcon,
      run: machine => actions.delete(machine)
    }
  ];
}

function snapshotCommands({ app, actions, model, state }: ICommandParts): ISnapshotCommand[] {
  // What an image's machines start from belongs to the image.
  const own = (node: INode): boolean => node.kind === 'snapshot';
  // The present that a revert left has no name to call it by.
  const named = (node: INode): boolean => node.kind !== 'undo';
  return [
    {
      id: CommandIDs.revert,
      label: 'Revert to This',
      caption: 'Go back to this; what is left can be brought back',
      icon: revertIcon,
      run: (machine, node) => actions.revert(machine, node)
    },
    {
      id: CommandIDs.forkSnapshot,
      label: 'Fork from This',
      caption: 'A new machine that starts from this',
      icon: forkIcon,
      run: (machine, node) => actions.fork(machine, node)
    },
    {
      id: CommandIDs.comparePresent,
      label: 'Compare with the Present',
      caption: 'What has changed since',
      icon: compareIcon,
      when: named,
      run: (machine, node) => {
        const tree = model.tree(machine);
        return openComparison(app, tree ? { before: stateOf(tree, node), after: machine } : null);
      }
    },
    {
      id: CommandIDs.compareSnapshot,
      label: 'Compare with…',
      caption: 'What differs from another snapshot, or from another machine',
      when: named,
      run: async (machine, node) => openComparison(app, await actions.chooseComparison(machine, node))
    },
    {
      id: CommandIDs.renameSnapshot,
      label: 'Rename',
      icon: editIcon,
      when: own,
      run: (machine, node) => state.edit({ machine, snapshot: node.id })
    },
    {
      id: CommandIDs.describeSnapshot,
      label: 'Describe…',
      when: own,
      run: (machine, node) => actions.describeSnapshot(machine, node)
    },
    {
      id: CommandIDs.verify,
      label: 'Verify',
      caption: 'Prove that it continues exactly where it was taken',
      when: node => node.live,
      run: (machine, node) => actions.verify(machine, node)
    },
    {
      id: CommandIDs.forget,
      label: 'Forget…',
      icon: deleteIcon,
      when: own,
      run: (machine, node) => actions.forget(machine, node)
    }
  ];
}

async function openComparison(app: JupyterFrontEnd, comparison: IComparison | null): Promise<void> {
  if (comparison) {
    const { before, after } = comparison;
    await app.commands.execute(CommandIDs.openComparison, { before, after });
  }
}

/** The menu of a machine, or of one of its snapshots, at a place of the page. */
export function openMenu(
  commands: CommandRegistry,
  args: { machine: string; snapshot?: string },
  x: number,
  y: number
): void {
  const menu = new Menu({ commands });
  for (const command of args.snapshot ? SNAPSHOT_MENU : MACHINE_MENU) {
    if (command === null) {
      menu.addItem({ type: 'separator' });
    } else if (commands.isEnabled(command, args)) {
      menu.addItem({ command, args });
    }
  }
  // Not in the middle of the close, which the command's own dialog may follow.
  menu.aboutToClose.connect(() => setTimeout(() => menu.dispose(), 0));
  menu.open(x, y);
}

function inPalette(command: IMachineCommand): string {
  return `${command.label.replace('…', '')}: Choose a Machine…`;
}

async function choose(title: string, machines: IMachine[]): Promise<IMachine | undefined> {
  const result = await InputDialog.getItem({
    title: title.replace('…', ''),
    label: 'Machine',
    items: machines.map(machine => machine.name),
    okLabel: title.replace('…', '')
  });
  return machines.find(machine => machine.name === result.value);
}

function findNode(model: LabModel, args: ReadonlyPartialJSONObject): INode | undefined {
  return model.tree(String(args['machine']))?.snapshots.find(node => node.id === args['snapshot']);
}
