import type { JupyterFrontEndPlugin } from '@jupyterlab/application';

import { Api } from './api';
import { LabModel } from './model';
import { ILabModel } from './token';

/** The lab as this page knows it. */
export const modelPlugin: JupyterFrontEndPlugin<LabModel> = {
  id: 'vmlab:model',
  description: 'Keeps the machines, snapshot trees and images of the lab.',
  autoStart: true,
  provides: ILabModel,
  activate: ({ serviceManager }) =>
    new LabModel(new Api(serviceManager.serverSettings), serviceManager.events)
};
