// Writes the licences of what is bundled into vmlab/static/console.js beside it, as they ask for.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';

const PARTS = [
  ['@novnc/novnc', 'https://github.com/novnc/noVNC', ['LICENSE.txt', 'docs/LICENSE.MPL-2.0']],
  ['@novnc/novnc/vendor/pako', 'https://github.com/nodeca/pako', ['LICENSE']],
  ['@xterm/xterm', 'https://github.com/xtermjs/xterm.js', ['LICENSE']],
  ['@xterm/addon-fit', 'https://github.com/xtermjs/xterm.js', ['LICENSE']]
];

const modules = new URL('node_modules/', import.meta.url);
const read = path => readFileSync(new URL(path, modules), 'utf8');

const texts = PARTS.map(([name, source, files]) => {
  const owner = name.split('/').slice(0, 2).join('/');
  const { version } = JSON.parse(read(`${owner}/package.json`));
  const head = `${name} (in ${owner} ${version}), unchanged. Source: ${source}`;
  return [head, '='.repeat(head.length), ...files.map(file => read(`${name}/${file}`))].join('\n\n');
});

const target = new URL('../vmlab/static/', import.meta.url);
mkdirSync(target, { recursive: true });
writeFileSync(
  new URL('console.js.LICENSES.txt', target),
  `console.js contains vmlab's own code (Apache-2.0) and:\n\n${texts.join('\n\n')}`
);
