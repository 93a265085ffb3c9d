import { LabIcon } from '@jupyterlab/ui-components';

// 16 x 16, in the manner of JupyterLab's own: class jp-icon3 takes the theme's colour.
const icon = (name: string, body: string): LabIcon =>
  new LabIcon({
    name: `vmlab:${name}`,
    svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 16 16"><g fill="none">${body}</g></svg>`
  });

// No `fill` of its own: JupyterLab's style sheet would colour it. It comes from the group around it.
const stroke =
  'class="jp-icon3 jp-icon-selectable" stroke="#616161" stroke-width="1.4" stroke-linecap="round" stroke-linejoin="round"';
const fill = 'class="jp-icon3 jp-icon-selectable" fill="#616161"';

/** A screen with a snapshot tree on it. */
export const vmlabIcon = icon(
  'machines',
  `<path class="jp-icon3 jp-icon-selectable" fill="#616161" d="M2.5 2h11c.8 0 1.5.7 1.5 1.5v7c0 .8-.7 1.5-1.5 1.5H9.6v1.1h1.6V14H4.8v-.9h1.6V12H2.5A1.5 1.5 0 0 1 1 10.5v-7C1 2.7 1.7 2 2.5 2zm0 1.2a.3.3 0 0 0-.3.3v7c0 .2.1.3.3.3h11c.2 0 .3-.1.3-.3v-7a.3.3 0 0 0-.3-.3z"/><path class="jp-icon3 jp-icon-selectable" stroke="#616161" stroke-width="1" d="M5.3 5v4M5.3 7.8c0-1.6 4-.6 4-2.2"/><g class="jp-icon3 jp-icon-selectable" fill="#616161"><circle cx="5.3" cy="4.8" r="1"/><circle cx="5.3" cy="9.2" r="1"/><circle cx="9.5" cy="5.2" r="1"/></g>`
);

export const pauseIcon = icon('pause', `<path ${fill} d="M4 3h3v10H4zM9 3h3v10H9z"/>`);

export const startIcon = icon('start', `<path ${fill} d="M4 2.6v10.8L13 8z"/>`);

export const powerIcon = icon('power', `<path ${stroke} d="M8 2v5.5M5 4a5 5 0 1 0 6 0"/>`);

/** A camera. */
export const snapshotIcon = icon(
  'snapshot',
  `<path ${stroke} d="M2 5.3c0-.5.4-.8.8-.8h1.9l1-1.5h4.6l1 1.5h1.9c.4 0 .8.3.8.8v6.9c0 .4-.4.8-.8.8H2.8a.8.8 0 0 1-.8-.8z"/><circle ${stroke} cx="8" cy="8.5" r="2.3"/>`
);

/** One line becomes two. */
export const forkIcon = icon(
  'fork',
  `<circle ${stroke} cx="4.5" cy="3.5" r="1.5"/><circle ${stroke} cx="11.5" cy="3.5" r="1.5"/><circle ${stroke} cx="4.5" cy="12.5" r="1.5"/><path ${stroke} d="M4.5 5v6M4.5 9.5c0-3 7-1.5 7-4.5"/>`
);

/** Back to an earlier point. */
export const revertIcon = icon(
  'revert',
  `<path ${stroke} d="M3 3v3.5h3.5M3.3 6.3A5.2 5.2 0 1 1 2.8 9M8 5.5V8.3l2 1.2"/>`
);

/** There and back: two things beside each other. */
export const compareIcon = icon(
  'compare',
  `<path ${stroke} d="M2.5 5.5h10M10 3l2.5 2.5L10 8M13.5 10.5h-10M6 8l-2.5 2.5L6 13"/>`
);

/** A look into a box. */
export const insideIcon = icon(
  'inside',
  `<path ${stroke} d="M6 3H3v10h10v-3"/><circle ${stroke} cx="10" cy="6" r="3"/><path ${stroke} d="M12.2 8.2 14 10"/>`
);

export const screenIcon = icon('screen', `<path ${stroke} d="M2 3.5h12v7.5H2zM6 13.5h4M8 11v2.5"/>`);
