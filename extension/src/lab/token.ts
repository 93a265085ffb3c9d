import { Token } from '@lumino/coreutils';

import type { LabModel } from './model';

/** The lab that all parts of the extension show. */
export const ILabModel = new Token<LabModel>(
  'vmlab:ILabModel',
  'The machines, snapshot trees and images of the lab, kept true by pushed events.'
);
