import { caretDownIcon, caretRightIcon, ellipsesIcon } from '@jupyterlab/ui-components';
import * as React from 'react';

import { doingText } from '../console/doing';
import { screenIcon } from '../icons';
import { IconButton, NameEditor, useSignal } from '../parts';
import { CommandIDs } from '../tokens';
import type { IMachine, IUsage } from '../types';
import { percent, size } from '../units';
import { openMenu } from './menu';
import type { Screens } from './screens';
import { SnapshotTree } from './tree';
import type { IViewParts } from './tree';

/** The buttons of a card; of those for a state only the ones that make sense are shown. */
const BUTTONS = [
  CommandIDs.start,
  CommandIDs.resume,
  CommandIDs.pause,
  CommandIDs.stop,
  CommandIDs.snapshot,
  CommandIDs.fork,
  CommandIDs.console
];

/** What the states mean, for a tooltip. */
const MEANING: Record<string, string> = {
  running: 'running',
  paused: 'paused: its CPUs stand still, its memory is kept',
  asleep: 'the guest has put itself to sleep: resume wakes it',
  suspended: 'off, with its RAM kept: Start goes on where it was',
  off: 'off',
  crashed: 'crashed: revert it, or start it anew',
  damaged: 'its record cannot be read: delete it, or bring the record back'
};

/** A machine: its screen, what it does and takes, what can be done with it, and its snapshots. */
export function Card(props: IViewParts & { machine: IMachine; screens: Screens }): React.ReactElement {
  const { machine, model, state, commands, actions } = props;
  useSignal(state.changed);
  const { name } = machine;
  const args = { machine: name };
  const doing = model.doing(name);
  const job = model.job('machine', name);
  const usage = model.usage(name);
  const expanded = state.isExpanded(name);
  // What is not as it was asked for, of a machine that runs (a port that was taken), comes first.
  const note = (machine.state === 'running' && machine.why) || machine.description;
  const openConsole = (): void => void commands.execute(CommandIDs.console, args);

  const card = React.useRef<HTMLLIElement>(null);
  React.useEffect(() => {
    if (state.takeFocus(name)) {
      card.current?.focus();
    }
  });
  React.useLayoutEffect(() => {
    const node = card.current;
    return () => {
      // Of a machine that goes, the keyboard goes to the next one.
      if (node?.contains(document.activeElement)) {
        const next = node.nextElementSibling ?? node.previousElementSibling;
        (next as HTMLElement | null)?.focus();
      }
    };
  }, []);
  const rename = async (to: string): Promise<boolean> => {
    const renamed = await actions.rename(name, to);
    if (renamed) {
      // The card of the old name goes, and the keyboard's place with it.
      state.focus(to);
    }
    return renamed;
  };

  const onKeyDown = (event: React.KeyboardEvent): void => {
    if (event.target !== event.currentTarget) {
      return;
    }
    const cards = [...document.querySelectorAll<HTMLElement>('.jp-vmlab-card')];
    const index = cards.indexOf(event.currentTarget as HTMLElement);
    const keys: Record<string, () => void> = {
      Enter: openConsole,
      ArrowDown: () => cards[index + 1]?.focus(),
      ArrowUp: () => cards[index - 1]?.focus(),
      ArrowRight: () => state.setExpanded(name, true),
      ArrowLeft: () => state.setExpanded(name, false),
      F2: () => state.edit({ machine: name, snapshot: null }),
      Delete: () => void commands.execute(CommandIDs.remove, args)
    };
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      event.stopPropagation();
      act();
    }
  };

  return (
    <li
      ref={card}
      className="jp-vmlab-card"
      data-machine={name}
      data-state={machine.state}
      tabIndex={0}
      aria-label={`${name}, ${machine.state}${doing ? `, ${doingText(doing)}` : ''}`}
      onKeyDown={onKeyDown}
      onContextMenu={event => {
        if (!event.shiftKey) {
          event.preventDefault();
          openMenu(commands, args, event.clientX, event.clientY);
        }
      }}
    >
      <div className="jp-vmlab-card-main" onDoubleClick={openConsole}>
        <Thumbnail machine={machine} screens={props.screens} busy={!!doing} />
        <div className="jp-vmlab-card-text">
          {state.isEditing(name, null) ? (
            <NameEditor
              name={name}
              label={`New name of the machine ${name}`}
              save={to => rename(to)}
              close={() => state.edit(null)}
            />
          ) : (
            <div
              className="jp-vmlab-card-name jp-vmlab-ellipsis"
              title={machine.description ? `${name}: ${machine.description}` : name}
            >
              {name}
            </div>
          )}
          <div
            className="jp-vmlab-state"
            title={machine.why ? `${machine.state}: ${machine.why}` : MEANING[machine.state]}
          >
            <span className="jp-vmlab-dot" aria-hidden="true" />
            <span className="jp-vmlab-ellipsis">{doing ? doingText(doing) : machine.state}</span>
            {machine.state === 'running' && !doing && usage && (
              <span
                className="jp-vmlab-cpu"
                title={`CPU: ${percent(usage.cpu_percent)} of one; the guest has ${machine.vcpus}`}
              >
                {percent(usage.cpu_percent)}
              </span>
            )}
          </div>
          <Figures machine={machine} usage={usage} />
          {job ? (
            <div className="jp-vmlab-dim jp-vmlab-ellipsis" title={job.text}>
              {job.text}
            </div>
          ) : (
            note && (
              <div className="jp-vmlab-dim jp-vmlab-ellipsis" title={note}>
                {note}
              </div>
            )
          )}
        </div>
      </div>
      <div className="jp-vmlab-card-buttons">
        <IconButton
          icon={expanded ? caretDownIcon : caretRightIcon}
          label={`${expanded ? 'Hide' : 'Show'} the snapshots of ${name}`}
          onClick={() => state.setExpanded(name, !expanded)}
        />
        <span
          className="jp-vmlab-here jp-vmlab-ellipsis"
          title={
            machine.here ? `Its present stands on the snapshot “${machine.here}”` : 'It has no snapshots'
          }
          onClick={() => state.setExpanded(name, !expanded)}
        >
          {machine.here ?? 'snapshots'}
        </span>
        {BUTTONS.filter(id => commands.isEnabled(id, args)).map(id => {
          const icon = commands.icon(id, args);
          const label = commands.label(id, args);
          return (
            icon &&
            'react' in icon && (
              <IconButton
                key={id}
                icon={icon as typeof screenIcon}
                label={`${label}: ${name}`}
                title={commands.caption(id, args) || label}
                disabled={doing !== null && id !== CommandIDs.console}
                onClick={() => void commands.execute(id, args)}
              />
            )
          );
        })}
        <IconButton
          icon={ellipsesIcon}
          label={`More for ${name}`}
          title="More"
          menu
          onClick={event => {
            const box = event.currentTarget.getBoundingClientRect();
            openMenu(commands, args, box.left, box.bottom);
          }}
        />
      </div>
      {expanded && <SnapshotTree {...props} machine={name} />}
    </li>
  );
}

function Figures(props: { machine: IMachine; usage: IUsage | undefined }): React.ReactElement {
  const { machine, usage } = props;
  if (!usage) {
    return (
      <div className="jp-vmlab-dim jp-vmlab-ellipsis">
        {machine.image} · {machine.memory} MiB
      </div>
    );
  }
  const alive = usage.memory_pss > 0;
  const share = Math.min(usage.memory_guest / usage.memory_size, 1);
  return (
    <>
      {alive && (
        <div
          className="jp-vmlab-memory"
          title={
            `Memory really taken: ${size(usage.memory_pss)}. The guest: ${size(usage.memory_guest)}` +
            ` of its ${size(usage.memory_size)}. QEMU itself: ${size(usage.memory_qemu)}.` +
            ` (Shared with others: ${size(usage.memory_shared)})`
          }
        >
          <span className="jp-vmlab-ellipsis">
            {size(usage.memory_guest)} <span className="jp-vmlab-dim">of {size(usage.memory_size)}</span>
          </span>
          <span className="jp-vmlab-bar" aria-hidden="true">
            <span style={{ width: `${share * 100}%` }} />
          </span>
        </div>
      )}
      <div
        className="jp-vmlab-dim jp-vmlab-ellipsis"
        title={`On disk: ${size(usage.disk)} for its present, ${size(usage.snapshots)} for its snapshots\nImage: ${machine.image}`}
      >
        disk {size(usage.disk + usage.snapshots)}
      </div>
    </>
  );
}

function Thumbnail(props: { machine: IMachine; screens: Screens; busy: boolean }): React.ReactElement {
  const { machine, screens } = props;
  const { name } = machine;
  useSignal(screens.changed);
  const node = React.useRef<HTMLDivElement>(null);
  React.useEffect(() => {
    const observer = new IntersectionObserver(entries =>
      screens.watch(name, entries[entries.length - 1].isIntersecting)
    );
    if (node.current) {
      observer.observe(node.current);
    }
    return () => {
      observer.disconnect();
      screens.watch(name, false);
    };
  }, [name, screens]);
  const url = screens.url(name);
  return (
    <div ref={node} className={`jp-vmlab-thumbnail${props.busy ? ' jp-mod-busy' : ''}`}>
      {url ? (
        <img src={url} alt={`Screen of ${name}`} draggable={false} />
      ) : (
        <screenIcon.react tag="span" width="28px" height="28px" />
      )}
    </div>
  );
}
