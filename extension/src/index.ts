import { comparisonsPlugin } from './plugins/comparisons';
import { consolesPlugin } from './plugins/consoles';
import { modelPlugin } from './plugins/model';
import { panelPlugin } from './plugins/panel';
import { savedPlugin } from './plugins/saved';
import { statusPlugin } from './plugins/status';

export { ILabModel } from './tokens';

export default [modelPlugin, panelPlugin, consolesPlugin, comparisonsPlugin, savedPlugin, statusPlugin];
