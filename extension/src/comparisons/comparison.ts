import type { IComparison } from '../lab/api';
import type { IMachine, INode, ITree } from '../types';

/** One of the things that a state can be compared with. */
export interface IChoice extends IComparison {
  label: string;
}

/** How the server and the page both call a comparison, in events. */
export function subjectOf({ before, after }: IComparison): string {
  return `${before} ${after}`;
}

/** A short name: `web: clean → now`; of two machines `web@clean → db`. */
export function titleOf({ before, after }: IComparison): string {
  const [machine, then] = parts(before);
  const [other, now] = parts(after);
  return machine === other ? `${machine}: ${then || 'now'} → ${now || 'now'}` : `${before} → ${after}`;
}

/** A name for a file of it. */
export function fileOf(comparison: IComparison): string {
  const words = titleOf(comparison).match(/[\w.-]+/g) ?? [];
  return `${words.join('-')}.html`;
}

/** How a snapshot in the tree of a machine is named; by its id where another one has the same name. */
export function stateOf(tree: ITree, node: INode): string {
  const alike = tree.snapshots.filter(other => other.name === node.name && other.kind !== 'undo');
  return `${tree.machine}@${alike.length > 1 ? node.id : node.name}`;
}

/**
 * What a machine as it is now, or a snapshot of it, can be compared with: its (other) snapshots, then other machines.
 *
 * The older state comes before the newer one.
 */
export function choices(tree: ITree, machines: readonly IMachine[], node?: INode): IChoice[] {
  const mine = node ? stateOf(tree, node) : tree.machine;
  const own = nearest(tree)
    // The present that a revert left has no name to call it by.
    .filter(other => other.kind !== 'undo' && other.id !== node?.id)
    .map(other => {
      const its = stateOf(tree, other);
      const older = node && time(node) < time(other);
      return { label: labelOf(tree, other), before: older ? mine : its, after: older ? its : mine };
    });
  const others = machines
    .filter(other => other.name !== tree.machine)
    .map(({ name }) => ({ label: `machine ${name}, now`, before: mine, after: name }));
  return [...own, ...others];
}

/** The snapshots of a tree: the one that the present stands on, then the others, the newest first. */
export function nearest({ snapshots, here }: ITree): INode[] {
  return [...snapshots].sort((a, b) => Number(b.id === here) - Number(a.id === here) || time(b) - time(a));
}

export function labelOf(tree: ITree, node: INode): string {
  if (node.kind === 'ready') {
    return `booted state of ${node.machine}`;
  }
  const whose = node.machine === tree.machine ? '' : ` of ${node.machine}`;
  return `snapshot ${node.name}${whose}${node.id === tree.here ? ' (it stands on this)' : ''}`;
}

function parts(state: string): [string, string] {
  const at = state.indexOf('@');
  return at < 0 ? [state, ''] : [state.slice(0, at), state.slice(at + 1)];
}

function time(node: INode): number {
  return node.created ? Date.parse(node.created) : 0;
}

/** What a page made of guests' file names, texts and pictures may load: nothing. As its header on the server. */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/** The page of a comparison, as it is kept in a file: it loads nothing, also where no server says so. */
export function guarded(html: string): string {
  return intoHead(html, `<meta http-equiv="Content-Security-Policy" content="${POLICY}">`);
}

/**
 * The same in the colours of JupyterLab's theme.
 *
 * @param read - The value of a CSS variable of the theme; empty if there is none.
 */
export function themed(html: string, read: (variable: string) => string, dark: boolean): string {
  const names = new Set([...html.matchAll(/var\((--jp-[\w-]+)/g)].map(match => match[1]));
  const values = [...names, '--jp-layout-color0'].map(name => [name, read(name).trim()]);
  const rules = values.filter(([, value]) => value && !/[<;{}]/.test(value)).map(pair => pair.join(':'));
  // The page has its own idea of light and dark, by the system's settings.
  const style =
    `:root{color-scheme:${dark ? 'dark' : 'light'}!important;${rules.join(';')}}` +
    'html body{margin:12px;background:var(--jp-layout-color0)!important}';
  return guarded(intoHead(html, `<style>${style}</style>`));
}

function intoHead(html: string, added: string): string {
  return html.replace('<head>', () => `<head>${added}`);
}
