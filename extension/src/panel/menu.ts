import type { CommandRegistry } from '@lumino/commands';
import { Menu } from '@lumino/widgets';

import { CommandIDs } from '../tokens';

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
  CommandIDs.forkSnapshotMany,
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

/** The menu of a machine, or of one of its snapshots, at a place of the page. */
export function openMenu(
  commands: CommandRegistry,
  args: { machine: string; snapshot?: string },
  x: number,
  y: number
): void {
  const menu = new Menu({ commands });
  const before = document.activeElement;
  for (const command of args.snapshot ? SNAPSHOT_MENU : MACHINE_MENU) {
    if (command === null) {
      menu.addItem({ type: 'separator' });
    } else if (commands.isEnabled(command, args)) {
      menu.addItem({ command, args });
    }
  }
  menu.aboutToClose.connect(() => {
    // The keyboard goes on where it was; a dialog of the command gives it back there as well.
    if (before instanceof HTMLElement) {
      before.focus({ preventScroll: true });
    }
    // Not in the middle of the close, which the command's own dialog may follow.
    setTimeout(() => menu.dispose(), 0);
  });
  menu.open(x, y);
}
