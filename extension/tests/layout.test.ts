import { describe, expect, it } from 'vitest';

import { layout, PRESENT } from '../src/panel/layout';
import { node } from './fakes';

function rows(...args: Parameters<typeof layout>): string[] {
  return layout(...args).map(line => `${'|'.repeat(line.lane)}${line.id}`);
}

describe('the drawing of a tree', () => {
  it('goes straight down where nothing branches', () => {
    expect(rows([node('a', null), node('b', 'a'), node('c', 'b')], 'c')).toEqual(['a', 'b', 'c', PRESENT]);
  });

  it('keeps the present in the left lane, side branches first', () => {
    const nodes = [node('a', null), node('b', 'a'), node('c', 'b'), node('d', 'a')];
    expect(rows(nodes, 'd')).toEqual(['a', '|b', '|c', 'd', PRESENT]);
    const side = layout(nodes, 'd')[1];
    expect(side).toMatchObject({ joins: 0, passing: [0], up: false, down: true, level: 2 });
  });

  it('puts the present where nothing is below a snapshot with branches', () => {
    expect(rows([node('a', null), node('b', 'a')], 'a')).toEqual(['a', '|b', PRESENT]);
  });

  it('makes roots of what has lost its parent, and ends a circle', () => {
    expect(rows([node('a', 'lost')], null)).toEqual(['a', PRESENT]);
    expect(rows([node('a', 'b'), node('b', 'a')], 'a')).not.toContain('a');
  });

  it('orders siblings by time', () => {
    const at = (id: string, created: string) => node(id, 'a', { created });
    const nodes = [node('a', null), at('late', '2026-01-02T00:00:00Z'), at('early', '2026-01-01T00:00:00Z')];
    expect(rows(nodes, 'a')).toEqual(['a', '|early', '|late', PRESENT]);
  });
});
