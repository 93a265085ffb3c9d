import { comparisonsPlugin } from './comparisons/plugin';
import { consolesPlugin } from './consoles/plugin';
import { savedPlugin } from './consoles/saved';
import { modelPlugin } from './lab/plugin';
import { panelPlugin } from './panel/plugin';
import { statusPlugin } from './status/plugin';

export { ILabModel } from './lab/token';

export default [modelPlugin, panelPlugin, consolesPlugin, comparisonsPlugin, savedPlugin, statusPlugin];
