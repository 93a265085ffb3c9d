/**
 * The consoles of vmlab, for any page: `import { ConsoleView } from '{base}vmlab/static/console.js'`.
 *
 * Two copies of noVNC in one page break each other, so whoever comes first keeps the module for the page, and the code
 * of any other copy (from another URL, or an older version) is never run.
 */
import type * as Main from './main';

export type { Api, ConsoleOptions, Events, LabEvent, Look, MachineModel, Mode, SnapshotModel } from './types';

const page = globalThis as unknown as Record<symbol, Promise<typeof Main> | undefined>;
const main = await (page[Symbol.for('vmlab.console')] ??= import('./main'));

export const { ConsoleView, SerialView, serverApi, serverEvents } = main;
export type ConsoleView = Main.ConsoleView;
export type SerialView = Main.SerialView;
