/**
 * What the server sends and takes, by the names that it has here; `openapi.ts` is made from the server's own
 * `openapi.yaml` (`npm run types`; `npm run lint` says when it is not up to date).
 */
import type { components } from './openapi';

type Schemas = components['schemas'];

export type State = Schemas['State'];
export type IMachine = Schemas['Machine'];
export type IUsage = Schemas['Usage'];
export type ILimits = Schemas['Limits'];
export type IImage = Schemas['Image'];
export type ILab = Schemas['Lab'];
/** A snapshot as it stands in a machine's tree. */
export type INode = Schemas['Node'];
export type ITree = Schemas['Tree'];
/** The answer to `POST machines/<m>/snapshots`. */
export type ISnapshot = Schemas['Snapshot'];
export type IVerification = Schemas['Verification'];
/** The body of `POST machines`; what is missing is as in the image. */
export type INewMachine = Schemas['NewMachine'];

/** What the server pushes; small on purpose: the page reads again what it names. */
export interface ILabEvent {
  kind: 'machine' | 'machine-gone' | 'snapshots' | 'images' | 'job' | 'reload';
  machine?: string;
  /** Of a job that builds it. */
  image?: string;
  /** Of a job that compares: the two states, as they were asked for. */
  comparison?: string;
  state?: State;
  doing?: string | null;
  text?: string;
  fraction?: number | null;
  /** Whether a job has ended, well or not. */
  done?: boolean;
}
