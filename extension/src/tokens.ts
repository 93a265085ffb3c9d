/** The id of the left panel. */
export const PANEL_ID = 'vmlab-panel';

/** Whose schema the settings have. */
export const SETTINGS = 'vmlab:plugin';

/** The ids of all commands; their words are the verbs of `%vm`. */
export namespace CommandIDs {
  export const panel = 'vmlab:panel';
  export const create = 'vmlab:create';
  /** Builds the `{image}`; asked for if missing. */
  export const build = 'vmlab:build-image';
  /** Opens or shows the tab of `{machine, kind: 'vnc' | 'serial'}`; also one of a machine that is gone. */
  export const openTab = 'vmlab:open-tab';

  /** Opens the tab that compares `{before, after, inside}`; states as `%vm diff` names them. */
  export const openComparison = 'vmlab:open-comparison';

  export const console = 'vmlab:console';
  export const serial = 'vmlab:serial';
  export const start = 'vmlab:start';
  export const stop = 'vmlab:stop';
  export const kill = 'vmlab:kill';
  export const pause = 'vmlab:pause';
  export const resume = 'vmlab:resume';
  export const snapshot = 'vmlab:snapshot';
  export const snapshotNamed = 'vmlab:snapshot-named';
  export const fork = 'vmlab:fork';
  export const forkMany = 'vmlab:fork-many';
  export const undo = 'vmlab:undo';
  export const compare = 'vmlab:compare';
  export const tree = 'vmlab:tree';
  export const rename = 'vmlab:rename';
  export const describe = 'vmlab:describe';
  export const remove = 'vmlab:delete';

  export const revert = 'vmlab:revert';
  export const forkSnapshot = 'vmlab:fork-snapshot';
  export const forkSnapshotMany = 'vmlab:fork-snapshot-many';
  export const comparePresent = 'vmlab:compare-present';
  export const compareSnapshot = 'vmlab:compare-snapshot';
  export const renameSnapshot = 'vmlab:rename-snapshot';
  export const describeSnapshot = 'vmlab:describe-snapshot';
  export const verify = 'vmlab:verify';
  export const forget = 'vmlab:forget';
}
