import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:plugin',
  description: 'Machines, snapshot trees and live consoles.',
  autoStart: true,
  activate: (_app: JupyterFrontEnd) => {}
};

export default plugin;
