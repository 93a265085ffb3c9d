/** What is being done to a machine, in words; for consoles and for the panel. Imports nothing: both bundles hold it. */

const DOING: Record<string, string> = {
  bake: 'being prepared',
  create: 'being made',
  delete: 'being deleted',
  describe: 'being described',
  fork: 'forking',
  kill: 'switching off',
  'look at it': 'being looked at',
  'open its serial line': 'opening its serial line',
  pause: 'pausing',
  rename: 'being renamed',
  resume: 'resuming',
  revert: 'reverting',
  snapshot: 'taking a snapshot',
  start: 'starting',
  stop: 'shutting down',
  undo: 'undoing the revert',
  verify: 'checking a snapshot'
};

/** What somebody is doing to a machine, said of the machine: `reverting …`. */
export function doingText(verb: string): string {
  return `${DOING[verb] ?? `busy (${verb})`} …`;
}
