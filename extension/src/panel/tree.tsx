import { ellipsesIcon } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { forkIcon, revertIcon } from '../icons';
import { snapshotPath } from '../lab/api';
import type { LabModel } from '../lab/model';
import { IconButton, NameEditor, useFocusKept, useSignal } from '../parts';
import { CommandIDs } from '../tokens';
import type { INode } from '../types';
import { ago, labelTrouble, size } from '../units';
import type { Actions } from './actions';
import { layout, PRESENT } from './layout';
import type { ILine } from './layout';
import { openMenu } from './menu';
import type { PanelState } from './state';

/** Pixels from one lane of the drawing to the next, and to the middle of a row's first line. */
const LANE = 14;
const MIDDLE = 20;

/** What the views act through. */
export interface IViewParts {
  model: LabModel;
  state: PanelState;
  actions: Actions;
  commands: CommandRegistry;
}

/**
 * The snapshot tree of a machine. A tree by hand and not `jp-tree-view`: that one draws a level as a step to the right,
 * and twenty snapshots in a row would leave a narrow panel; and its items cannot hold pictures and buttons.
 */
export function SnapshotTree(props: IViewParts & { machine: string }): React.ReactElement {
  const { machine, model, commands, state } = props;
  useSignal(state.changed);
  const tree = model.tree(machine);
  const [current, setCurrent] = React.useState<string>(PRESENT);
  const root = React.useRef<HTMLDivElement>(null);
  React.useEffect(() => {
    void model.openTree(machine);
    return () => model.closeTree(machine);
  }, [model, machine]);
  // Times like "12 s ago" grow older while nothing else happens.
  const [, tick] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const timer = setInterval(tick, 20000);
    return () => clearInterval(timer);
  }, []);

  if (!tree) {
    return <div className="jp-vmlab-note">Reading the snapshots …</div>;
  }
  const lines = layout(tree.snapshots, tree.here);
  const lanes = Math.max(...lines.map(line => line.lane)) + 1;
  const active = lines.some(line => line.id === current) ? current : PRESENT;

  const goTo = (index: number): void => {
    const line = lines[Math.max(0, Math.min(lines.length - 1, index))];
    setCurrent(line.id);
    root.current?.querySelector<HTMLElement>(`[data-snapshot="${line.id}"]`)?.focus();
  };
  const run = (command: string, id: string): void => {
    const args = { machine, snapshot: id };
    if (id !== PRESENT && commands.isEnabled(command, args)) {
      void commands.execute(command, args);
    }
  };
  const onKeyDown = (event: React.KeyboardEvent, index: number): void => {
    if (event.target !== event.currentTarget) {
      return; // a button in the row
    }
    const { id, node } = lines[index];
    const keys: Record<string, () => void> = {
      ArrowDown: () => goTo(index + 1),
      ArrowUp: () => goTo(index - 1),
      Home: () => goTo(0),
      End: () => goTo(lines.length - 1),
      ArrowLeft: () => goTo(lines.findIndex(line => line.id === (node?.parent ?? tree.here))),
      ArrowRight: () => goTo(lines.findIndex(line => line.node?.parent === id) || index),
      Enter: () => run(CommandIDs.revert, id),
      F2: () => run(CommandIDs.renameSnapshot, id),
      Delete: () => run(CommandIDs.forget, id)
    };
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      event.stopPropagation();
      act();
    }
  };

  return (
    <div ref={root} role="tree" className="jp-vmlab-tree" aria-label={`Snapshots of ${machine}`}>
      {lines.map((line, index) => (
        <Row
          {...props}
          key={line.id}
          line={line}
          lanes={lanes}
          here={line.id === tree.here}
          tabIndex={line.id === active ? 0 : -1}
          onFocus={() => setCurrent(line.id)}
          onKeyDown={event => onKeyDown(event, index)}
        />
      ))}
      {tree.snapshots.every(node => node.kind !== 'snapshot') && (
        <div className="jp-vmlab-note">No snapshots yet. The camera takes one while the guest goes on.</div>
      )}
    </div>
  );
}

function Row(
  props: IViewParts & {
    machine: string;
    line: ILine;
    lanes: number;
    here: boolean;
    tabIndex: number;
    onFocus: () => void;
    onKeyDown: (event: React.KeyboardEvent) => void;
  }
): React.ReactElement {
  const { line, machine, commands, actions, state, here } = props;
  const { node } = line;
  const [open, setOpen] = React.useState(false);
  const root = useFocusKept<HTMLDivElement>();
  const args = node ? { machine, snapshot: node.id } : null;
  const showMenu = (x: number, y: number): void => {
    if (args) {
      openMenu(commands, args, x, y);
    }
  };

  return (
    <div
      ref={root}
      role="treeitem"
      aria-level={line.level}
      aria-selected={here}
      aria-label={node ? rowLabel(node, here) : `The present of ${machine}`}
      className={`jp-vmlab-row${node ? '' : ' jp-mod-present'}`}
      data-snapshot={line.id}
      tabIndex={props.tabIndex}
      onFocus={event => {
        if (event.target === event.currentTarget) {
          props.onFocus();
        }
      }}
      onKeyDown={props.onKeyDown}
      onDoubleClick={event => event.stopPropagation()}
      onContextMenu={event => {
        if (node && !event.shiftKey) {
          event.preventDefault();
          event.stopPropagation();
          showMenu(event.clientX, event.clientY);
        }
      }}
    >
      <Drawing line={line} lanes={props.lanes} />
      {node ? (
        <>
          <Picture node={node} model={props.model} />
          <div className="jp-vmlab-row-text">
            {state.isEditing(machine, node.id) ? (
              <NameEditor
                name={node.name}
                label={`New name of the snapshot ${node.name}`}
                trouble={labelTrouble}
                save={name => actions.renameSnapshot(machine, node, name)}
                close={() => state.edit(null)}
              />
            ) : (
              <div className="jp-vmlab-row-name">
                <span
                  className="jp-vmlab-ellipsis"
                  title={node.name}
                  onDoubleClick={() => node.kind === 'snapshot' && state.edit({ machine, snapshot: node.id })}
                >
                  {node.name}
                </span>
                {node.kind === 'ready' && (
                  <span className="jp-vmlab-badge" title={`The booted state of the image ${node.machine}`}>
                    {node.machine}
                  </span>
                )}
                {node.kind === 'damaged' && (
                  <span
                    className="jp-vmlab-badge"
                    title="Its manifest cannot be read: forget it, or bring that back"
                  >
                    damaged
                  </span>
                )}
                {!node.live && node.kind !== 'damaged' && (
                  <span className="jp-vmlab-badge" title="Taken while the machine was off: disks, no RAM">
                    offline
                  </span>
                )}
              </div>
            )}
            <div className="jp-vmlab-dim jp-vmlab-ellipsis" title={rowTitle(node)}>
              {node.created && ago(new Date(node.created))} · {size(node.size)}
            </div>
            {node.description && (
              <div
                className={`jp-vmlab-description${open ? ' jp-mod-open' : ''}`}
                title={open ? '' : node.description}
                onClick={() => setOpen(!open)}
              >
                {node.description}
              </div>
            )}
          </div>
          <div className="jp-vmlab-row-buttons">
            <IconButton
              icon={revertIcon}
              label={`Revert ${machine} to ${node.name}`}
              tabIndex={props.tabIndex}
              onClick={() => void commands.execute(CommandIDs.revert, args!)}
            />
            <IconButton
              icon={forkIcon}
              label={`Fork from ${node.name}`}
              title={`Fork: a new machine that starts from ${node.name}`}
              tabIndex={props.tabIndex}
              onClick={() => void commands.execute(CommandIDs.forkSnapshot, args!)}
            />
            <IconButton
              icon={ellipsesIcon}
              label={`More for the snapshot ${node.name}`}
              title="More"
              menu
              tabIndex={props.tabIndex}
              onClick={event => {
                const box = event.currentTarget.getBoundingClientRect();
                showMenu(box.left, box.bottom);
              }}
            />
          </div>
        </>
      ) : (
        <div className="jp-vmlab-row-text">
          <div className="jp-vmlab-row-name">you are here</div>
        </div>
      )}
    </div>
  );
}

function rowLabel(node: INode, here: boolean): string {
  const when = node.created ? `, ${ago(new Date(node.created))}` : '';
  return (
    `${node.name}${node.live ? '' : ', offline'}${when}, ${size(node.size)}` +
    `${here ? ', the present stands on it' : ''}` +
    `${node.description ? `. ${node.description}` : ''}`
  );
}

function rowTitle(node: INode): string {
  const when = node.created ? new Date(node.created).toLocaleString() : '';
  const parts = node.live
    ? `RAM ${size(node.ram_bytes)}, disk ${size(node.disk_bytes)}`
    : `disk ${size(node.disk_bytes)}; offline: no RAM`;
  return `${when}\n${parts}`;
}

/** The lines of the tree beside a row. */
function Drawing(props: { line: ILine; lanes: number }): React.ReactElement {
  const { line } = props;
  const x = (lane: number): number => lane * LANE + 8;
  const here = line.node === null;
  return (
    <div className="jp-vmlab-drawing" style={{ width: props.lanes * LANE + 4 }} aria-hidden="true">
      {/* Lines are boxes, so that they are as high as the row whatever is in it. */}
      {line.passing.map(lane => (
        <i key={lane} style={{ left: x(lane), top: 0, bottom: 0 }} />
      ))}
      {line.up && <i style={{ left: x(line.lane), top: 0, height: MIDDLE }} />}
      {line.down && <i style={{ left: x(line.lane), top: MIDDLE, bottom: 0 }} />}
      {line.joins !== null && (
        <b
          style={{
            left: x(line.joins),
            width: x(line.lane) - x(line.joins),
            height: MIDDLE
          }}
        />
      )}
      <span
        className={here ? 'jp-mod-here' : line.node?.live ? '' : 'jp-mod-hollow'}
        style={{ left: x(line.lane), top: MIDDLE }}
      />
    </div>
  );
}

function Picture(props: { node: INode; model: LabModel }): React.ReactElement {
  const { node, model } = props;
  const [lost, setLost] = React.useState(false);
  return (
    <div className="jp-vmlab-row-picture">
      {!lost && node.live && (
        <img
          alt=""
          loading="lazy"
          draggable={false}
          src={model.api.url(`${snapshotPath(node.id)}/screen.png?width=160`)}
          onError={() => setLost(true)}
        />
      )}
    </div>
  );
}
