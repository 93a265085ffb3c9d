import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { expect, it } from 'vitest';

const SOURCE = join(import.meta.dirname, '..', 'src');

/** What each file of `src` imports of the others, types included; `nameOf` may put several under one name. */
function imports(nameOf: (file: string) => string): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const file of readdirSync(SOURCE, { recursive: true, encoding: 'utf8' })) {
    if (/\.tsx?$/.test(file)) {
      const text = readFileSync(join(SOURCE, file), 'utf8');
      for (const [, path] of text.matchAll(/from '(\.[^']*)'|import\('(\.[^']*)'\)/g)) {
        const to = relative(SOURCE, join(SOURCE, dirname(file), path ?? '.'));
        const [part, other] = [file, to].map(name => nameOf(name.replace(/\.tsx?$/, '')));
        if (part !== other) {
          found.set(part, (found.get(part) ?? new Set()).add(other));
        }
      }
    }
  }
  return found;
}

/** The parts in an order in which each imports only earlier ones; null if there is a circle. */
function storeys(parts: Map<string, Set<string>>): string[] | null {
  const left = new Set([...parts.keys(), ...[...parts.values()].flatMap(part => [...part])]);
  const order: string[] = [];
  while (left.size > 0) {
    const next = [...left].filter(part => [...(parts.get(part) ?? [])].every(other => !left.has(other)));
    if (next.length === 0) {
      return null;
    }
    next.forEach(part => left.delete(part));
    order.push(...next);
  }
  return order;
}

/** The folder that a file lies in, or the file where it lies in none. */
const folder = (file: string): string => file.split('/')[0];

it.each([
  ['files', (file: string) => file],
  ['folders', folder]
])('has %s that import in one direction only', (_, nameOf) => {
  const parts = imports(nameOf);
  expect(parts.size).toBeGreaterThan(8);
  const ties = [...parts].map(([part, others]) => `${part}: ${[...others].join(' ')}`).join('\n');
  expect(storeys(parts), ties).not.toBeNull();
});

it('keeps JupyterLab out of the consoles, which any page may use', () => {
  expect([...(imports(folder).get('console') ?? [])]).toEqual([]);
  for (const file of readdirSync(join(SOURCE, 'console'))) {
    expect(readFileSync(join(SOURCE, 'console', file), 'utf8'), file).not.toMatch(
      /from '@(jupyterlab|lumino)/
    );
  }
});
