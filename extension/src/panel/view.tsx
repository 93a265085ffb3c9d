import * as React from 'react';

import { useSignal } from '../parts';
import { CommandIDs } from '../tokens';
import { count, size } from '../units';
import { Card } from './card';
import { Images } from './images';
import type { Screens } from './screens';
import type { IViewParts } from './tree';

/** All of the left panel below its toolbar. */
export function PanelView(props: IViewParts & { screens: Screens }): React.ReactElement {
  const { model, commands } = props;
  useSignal(model.changed);
  return (
    <div className="jp-vmlab-content">
      <Announcements {...props} />
      {model.error && (
        <div className="jp-vmlab-trouble" role="alert">
          <p>{model.error.message}</p>
          {model.error.hint && <p>Next: {model.error.hint}</p>}
          <button type="button" className="jp-vmlab-text-button" onClick={() => void model.reload()}>
            Try again
          </button>
        </div>
      )}
      {!model.loaded && !model.error && <div className="jp-vmlab-note">Reading the lab …</div>}
      {model.loaded && <Sums {...props} />}
      {model.loaded && model.machines.length === 0 && (
        <div className="jp-vmlab-empty">
          <p>No machines yet.</p>
          <button
            type="button"
            className="jp-vmlab-text-button"
            onClick={() => void commands.execute(CommandIDs.create)}
          >
            New machine …
          </button>
        </div>
      )}
      <ul className="jp-vmlab-cards" aria-label="Machines">
        {model.machines.map(machine => (
          <Card {...props} key={machine.uuid} machine={machine} />
        ))}
      </ul>
      {model.loaded && <Images {...props} />}
    </div>
  );
}

/** What all machines take together. */
function Sums({ model }: IViewParts): React.ReactElement | null {
  const { limits } = model;
  if (!limits) {
    return null;
  }
  return (
    <div className="jp-vmlab-sums">
      <span
        title={`${count(model.machines.length, 'machine')} on ${count(limits.cpus, 'CPU')} (${model.accelerator})`}
      >
        {model.running} of {model.machines.length} running
      </span>
      <span
        title={
          `Memory that the machines really take: ${size(model.memoryTaken)}; the host has ` +
          `${size(limits.memory_total)}, ${size(limits.memory_available)} of it available`
        }
      >
        RAM {size(model.memoryTaken)} of {size(limits.memory_total)}
      </span>
      <span title={`The machines take ${size(limits.disk_taken)} of ${size(limits.disk_total)}`}>
        disk {size(limits.disk_free)} free
      </span>
    </div>
  );
}

/** Tells people who do not see the panel that a machine's state has changed. */
function Announcements({ model }: IViewParts): React.ReactElement {
  const [text, setText] = React.useState('');
  React.useEffect(() => {
    const slot = (_: unknown, sentence: string): void => setText(sentence);
    model.announced.connect(slot);
    return () => {
      model.announced.disconnect(slot);
    };
  }, [model]);
  return (
    <div className="jp-vmlab-hidden" role="status" aria-live="polite">
      {text}
    </div>
  );
}
