import type { INewMachine } from '../types';
import { nameTrouble } from '../units';

const GIB = 1 << 30;

/** What stands in the fields; an empty one is as the image has it. */
export interface IForm {
  image: string;
  name: string;
  memory: string;
  vcpus: string;
  wayOut: NonNullable<INewMachine['way_out']> | '';
  disk: string;
  forwards: string;
  firmware: NonNullable<INewMachine['firmware']> | '';
  sound: NonNullable<INewMachine['sound']> | '';
  kernelArgs: string;
  start: boolean;
}

/** Return what to ask the server for, or why it cannot be asked. */
export function readForm(form: IForm): INewMachine | string {
  const trouble = form.name ? nameTrouble(form.name) : null;
  if (trouble) {
    return trouble;
  }
  const forwards: [number, number][] = [];
  for (const pair of form.forwards.split(/[\s,]+/).filter(Boolean)) {
    const [, host, guest] = /^(\d{1,5}):(\d{1,5})$/.exec(pair) ?? [];
    if (!host || Number(host) > 65535 || Number(guest) > 65535) {
      return `“${pair}” is no forwarded port. Write port of the host:port in the guest, such as 8080:80.`;
    }
    forwards.push([Number(host), Number(guest)]);
  }
  return {
    image: form.image,
    ...(form.name && { name: form.name }),
    ...(form.memory && { memory: Number(form.memory) }),
    ...(form.vcpus && { vcpus: Number(form.vcpus) }),
    ...(form.disk && { disk: Math.round(Number(form.disk) * GIB) }),
    ...(form.wayOut && { way_out: form.wayOut }),
    ...(forwards.length && { forwards }),
    ...(form.firmware && { firmware: form.firmware }),
    ...(form.sound && { sound: form.sound }),
    ...(form.kernelArgs && { kernel_args: form.kernelArgs }),
    ...(!form.start && { start: false })
  };
}
