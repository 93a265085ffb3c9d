/** All that a page can use; evaluated once in a page, see `index.ts`. */
export { serverApi } from './api';
export { serverEvents } from './events';
export { ConsoleView } from './view';
export { SerialView } from './serial';
