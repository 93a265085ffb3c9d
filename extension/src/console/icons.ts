/** Icons of the toolbar, drawn on 16 x 16 with lines of one width, in the colour of the text. */

const PATHS = {
  fit: 'M2.5 5.5v-3h3M10.5 2.5h3v3M13.5 10.5v3h-3M5.5 13.5h-3v-3',
  actual: 'M2.5 3.5h11v9h-11zM5.7 6v4M10.3 6v4M8 6.9v.1M8 9v.1',
  full: 'M9.5 2.5h4v4M13.2 2.8 9.5 6.5M6.5 13.5h-4v-4M2.8 13.2l3.7-3.7',
  popOut: 'M6.5 3.5h-4v10h10v-4M9 2.5h4.5V7M13.2 2.8 7.5 8.5',
  minimise: 'M3 12.5h10',
  keys: 'M1.5 4.5h13v8h-13zM4 7h.1M6.6 7h.1M9.3 7h.1M12 7h.1M5 10h6',
  type: 'M5.5 3.5h-2v10h9v-10h-2M5.5 2.5h5v2h-5zM5.5 7.5h5M5.5 10h3.5',
  snapshot: 'M2.5 5h2.7l1-1.5h3.6l1 1.5h2.7v7.5h-11zM8 6.7a2 2 0 1 0 .01 0',
  revert: 'M3 3v3.5h3.5M3.2 6.3A5.3 5.3 0 1 1 2.8 9M8 5.5V8.6l2.2 1.2',
  undo: 'M6 3 2.8 6.2 6 9.4M3 6.2h6.3a3.4 3.4 0 0 1 0 6.8H6',
  pause: 'M5.5 3.5v9M10.5 3.5v9',
  resume: 'M5 3.2v9.6l7.5-4.8z',
  power: 'M8 2v5.5M4.8 4a5.2 5.2 0 1 0 6.4 0',
  lock: 'M4 7.5h8v6H4zM5.8 7.3V5a2.2 2.2 0 0 1 4.4 0v2.3',
  unlock: 'M4 7.5h8v6H4zM5.8 7.3V5a2.2 2.2 0 0 1 4.2-1',
  more: 'M3.5 8h.1M8 8h.1M12.5 8h.1',
  copy: 'M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3',
  close: 'M4 4l8 8M12 4l-8 8'
} as const;

export type IconName = keyof typeof PATHS;

export function icon(name: IconName): SVGSVGElement {
  const ns = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('width', '16');
  svg.setAttribute('height', '16');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(ns, 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}
