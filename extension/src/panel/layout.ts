import type { INode } from '../types';

/**
 * One row of a snapshot tree: the drawing of `vmlab/render/tree.py`, so that the panel and a notebook show the same.
 *
 * A line of snapshots without branches goes straight down in one lane. The branch that leads to the present keeps the
 * left lane; the others come first, each one lane to the right of where it leaves.
 */
export interface ILine {
  /** Null stands for the present. */
  node: INode | null;
  id: string;
  /** Depth in the tree, from 1. */
  level: number;
  lane: number;
  /** Lanes whose line goes through the whole row. */
  passing: number[];
  up: boolean;
  down: boolean;
  /** The lane of the parent from which a curve comes, for the first row of a side branch. */
  joins: number | null;
}

/** The id of the row that stands for the present. No snapshot's: those are digits and letters. */
export const PRESENT = 'present';

interface IItem {
  id: string;
  parent: string | null;
  time: number;
  node: INode | null;
}

export function layout(nodes: INode[], here: string | null): ILine[] {
  const items: IItem[] = nodes.map(node => ({
    id: node.id,
    parent: node.parent,
    time: node.created ? Date.parse(node.created) : Infinity,
    node
  }));
  items.push({ id: PRESENT, parent: here, time: Infinity, node: null });

  const known = new Map(items.map(item => [item.id, item]));
  const children = new Map<string | null, IItem[]>();
  for (const item of items) {
    // A parent that is not among them makes its children roots.
    const parent = item.parent !== null && known.has(item.parent) ? item.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), item]);
  }
  const leadsHere = new Set<string>();
  for (
    let item = known.get(PRESENT);
    item && !leadsHere.has(item.id);
    item = item.parent === null ? undefined : known.get(item.parent)
  ) {
    leadsHere.add(item.id);
  }
  const ordered = (of: string | null): IItem[] =>
    [...(children.get(of) ?? [])].sort(
      (a, b) =>
        Number(leadsHere.has(a.id)) - Number(leadsHere.has(b.id)) ||
        (a.time === b.time ? 0 : a.time - b.time) ||
        (a.id < b.id ? -1 : 1)
    );

  const lines: ILine[] = [];
  const visit = (item: IItem, place: Pick<ILine, 'level' | 'lane' | 'passing' | 'up' | 'joins'>): void => {
    const below = ordered(item.id);
    const { level, lane, passing } = place;
    lines.push({
      ...place,
      node: item.node,
      id: item.id,
      down: below.length > 0
    });
    const main = below.pop();
    for (const side of below) {
      visit(side, {
        level: level + 1,
        lane: lane + 1,
        passing: [...passing, lane],
        up: false,
        joins: lane
      });
    }
    if (main) {
      visit(main, { level: level + 1, lane, passing, up: true, joins: null });
    }
  };
  for (const root of ordered(null)) {
    visit(root, { level: 1, lane: 0, passing: [], up: false, joins: null });
  }
  return lines;
}
