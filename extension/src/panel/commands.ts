import type { JupyterFrontEnd } from '@jupyterlab/application';
import { InputDialog } from '@jupyterlab/apputils';
import type { ICommandPalette } from '@jupyterlab/apputils';
import { addIcon, deleteIcon, editIcon, stopIcon, terminalIcon, undoIcon } from '@jupyterlab/ui-components';
import type { LabIcon } from '@jupyterlab/ui-components';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { stateOf } from '../comparisons/comparison';
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
} from '../icons';
import type { IComparison } from '../lab/api';
import type { LabModel } from '../lab/model';
import { CommandIDs, PANEL_ID } from '../tokens';
import type { IImage, IMachine, INode, ITree, State } from '../types';
import type { Actions } from './actions';
import type { PanelState } from './state';

const CATEGORY = 'Virtual machines';

/** What can be done to a machine. */
interface IMachineCommand {
  id: string;
  /** On a button or in the menu of one machine. */
  label: string;
  /** What it does, for a tooltip; a name without it says enough. */
  caption?: string;
  icon?: LabIcon;
  /** In which states it makes sense; any but damaged if missing. */
  states?: State[];
  /** A further condition. */
  when?: (machine: IMachine) => boolean;
  run: (machine: IMachine) => Promise<void> | void;
}

/** What can be done to a snapshot of a machine. */
interface ISnapshotCommand {
  id: string;
  label: string;
  /** In the command palette, where snapshots have to be asked for. */
  asking: string;
  caption?: string;
  icon?: LabIcon;
  when?: (node: INode) => boolean;
  /** The tree is the machine's; the snapshot may be of the one that this was forked from. */
  run: (tree: ITree, node: INode) => Promise<void> | void;
}

const ALIVE: State[] = ['running', 'paused', 'asleep', 'crashed'];
const ANY: State[] = [...ALIVE, 'off', 'suspended', 'damaged'];

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
  const { actions, app, model, palette } = parts;
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
  const unbuilt = (): IImage[] => model.images.filter(image => image.builtin && !image.built);
  app.commands.addCommand(CommandIDs.build, {
    label: args => (args['image'] ? 'Build' : 'Build an Image…'),
    caption: 'Build a built-in image, which takes some minutes',
    describedBy: {
      args: {
        type: 'object',
        properties: { image: { type: 'string', description: 'Name of the image; asked for if missing' } }
      }
    },
    isEnabled: ({ image }) => unbuilt().some(({ name }) => !image || name === image),
    execute: async args => {
      const name =
        typeof args['image'] === 'string'
          ? args['image']
          : await chooseName(
              'Build an Image',
              'Image',
              unbuilt().map(image => image.name),
              'Build'
            );
      const image = model.images.find(other => other.name === name);
      if (image) {
        await actions.build(image);
      }
    }
  });
  const ids: string[] = [CommandIDs.panel, CommandIDs.create, CommandIDs.build];

  for (const command of machineCommands(parts)) {
    const fits = (machine: IMachine): boolean =>
      (command.states?.includes(machine.state) ?? machine.state !== 'damaged') &&
      (command.when?.(machine) ?? true);
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
        return model.machines.some(machine => (!name || machine.name === name) && fits(machine));
      },
      execute: async args => {
        const machine =
          typeof args['machine'] === 'string'
            ? model.machine(args['machine'])
            : await chooseMachine(command.label, model.machines.filter(fits));
        if (machine) {
          await command.run(machine);
        }
      }
    });
    ids.push(command.id);
  }

  for (const command of snapshotCommands(parts)) {
    const fits = (node: INode): boolean => command.when?.(node) ?? true;
    app.commands.addCommand(command.id, {
      label: args => (args['snapshot'] ? command.label : command.asking),
      caption: command.caption ?? '',
      icon: command.icon,
      describedBy: {
        args: {
          type: 'object',
          properties: {
            machine: { type: 'string', description: 'Name of the machine; asked for if missing' },
            snapshot: { type: 'string', description: 'Id of the snapshot; asked for if missing' }
          }
        }
      },
      isEnabled: args => {
        const { machine, snapshot } = args;
        if (snapshot) {
          const found = findNode(model, args);
          return found !== null && fits(found.node);
        }
        return model.machines.some(({ name }) => !machine || name === machine);
      },
      execute: async args => {
        const title = command.asking.replace('…', '');
        let found = args['snapshot'] ? findNode(model, args) : null;
        if (!args['snapshot']) {
          const machine =
            typeof args['machine'] === 'string'
              ? model.machine(args['machine'])
              : await chooseMachine(title, model.machines, 'Next');
          found = machine ? await actions.chooseSnapshot(title, machine.name, fits) : null;
        }
        if (found) {
          await command.run(found.tree, found.node);
        }
      }
    });
    ids.push(command.id);
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
      states: ['paused', 'asleep'],
      run: act('resume')
    },
    {
      id: CommandIDs.stop,
      label: 'Shut Down',
      caption: 'Shut down: ask the guest to power off',
      icon: powerIcon,
      states: ['running', 'paused', 'asleep'],
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
      states: ['running', 'paused', 'off', 'crashed'],
      run: machine => actions.snapshot(machine.name)
    },
    {
      id: CommandIDs.snapshotNamed,
      label: 'Take Snapshot as…',
      states: ['running', 'paused', 'off', 'crashed'],
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
      caption: 'Choose how many new machines go on from here, and their names',
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
      states: ANY,
      run: machine => actions.delete(machine)
    }
  ];
}

function snapshotCommands({ app, actions, state }: ICommandParts): ISnapshotCommand[] {
  // What an image's machines start from belongs to the image.
  const own = (node: INode): boolean => node.kind === 'snapshot' || node.kind === 'damaged';
  const usable = (node: INode): boolean => node.kind !== 'damaged';
  // The present that a revert left has no name to call it by.
  const named = (node: INode): boolean => node.kind !== 'undo' && usable(node);
  return [
    {
      id: CommandIDs.revert,
      label: 'Revert to This',
      asking: 'Revert to a Snapshot…',
      caption: 'Go back to this; what is left can be brought back',
      icon: revertIcon,
      when: usable,
      run: ({ machine }, node) => actions.revert(machine, node)
    },
    {
      id: CommandIDs.forkSnapshot,
      label: 'Fork from This',
      asking: 'Fork from a Snapshot…',
      caption: 'A new machine that starts from this',
      icon: forkIcon,
      when: usable,
      run: ({ machine }, node) => actions.fork(machine, node)
    },
    {
      id: CommandIDs.forkSnapshotMany,
      label: 'Fork Several from This…',
      asking: 'Fork Several from a Snapshot…',
      caption: 'Choose how many new machines start from this, and their names',
      when: usable,
      run: ({ machine }, node) => actions.forkMany(machine, node)
    },
    {
      id: CommandIDs.comparePresent,
      label: 'Compare with the Present',
      asking: 'Compare a Snapshot with the Present…',
      caption: 'What has changed since',
      icon: compareIcon,
      when: named,
      run: (tree, node) => openComparison(app, { before: stateOf(tree, node), after: tree.machine })
    },
    {
      id: CommandIDs.compareSnapshot,
      label: 'Compare with…',
      asking: 'Compare a Snapshot with Another State…',
      caption: 'What differs from another snapshot, or from another machine',
      when: named,
      run: async ({ machine }, node) => openComparison(app, await actions.chooseComparison(machine, node))
    },
    {
      id: CommandIDs.renameSnapshot,
      label: 'Rename',
      asking: 'Rename a Snapshot…',
      icon: editIcon,
      when: own,
      run: ({ machine }, node) => {
        app.shell.activateById(PANEL_ID);
        state.edit({ machine, snapshot: node.id });
      }
    },
    {
      id: CommandIDs.describeSnapshot,
      label: 'Describe…',
      asking: 'Describe a Snapshot…',
      when: own,
      run: ({ machine }, node) => actions.describeSnapshot(machine, node)
    },
    {
      id: CommandIDs.verify,
      label: 'Verify',
      asking: 'Verify a Snapshot…',
      caption: 'Prove that it continues exactly where it was taken',
      run: ({ machine }, node) => actions.verify(machine, node)
    },
    {
      id: CommandIDs.forget,
      label: 'Forget…',
      asking: 'Forget a Snapshot…',
      icon: deleteIcon,
      when: own,
      run: ({ machine }, node) => actions.forget(machine, node)
    }
  ];
}

async function openComparison(app: JupyterFrontEnd, comparison: IComparison | null): Promise<void> {
  if (comparison) {
    const { before, after } = comparison;
    await app.commands.execute(CommandIDs.openComparison, { before, after });
  }
}

function inPalette(command: IMachineCommand): string {
  return `${command.label.replace('…', '')}: Choose a Machine…`;
}

async function chooseMachine(
  label: string,
  machines: readonly IMachine[],
  okLabel?: string
): Promise<IMachine | undefined> {
  const title = label.replace('…', '');
  const names = machines.map(machine => machine.name);
  const name = await chooseName(title, 'Machine', names, okLabel ?? title);
  return machines.find(machine => machine.name === name);
}

async function chooseName(
  title: string,
  label: string,
  items: string[],
  okLabel: string
): Promise<string | null> {
  const result = await InputDialog.getItem({ title, label, items, okLabel });
  return result.button.accept ? result.value : null;
}

function findNode(model: LabModel, args: ReadonlyPartialJSONObject): { tree: ITree; node: INode } | null {
  const tree = model.tree(String(args['machine']));
  const node = tree?.snapshots.find(other => other.id === args['snapshot']);
  return tree && node ? { tree, node } : null;
}
