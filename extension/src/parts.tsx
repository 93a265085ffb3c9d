import type { LabIcon } from '@jupyterlab/ui-components';
import type { ISignal } from '@lumino/signaling';
import * as React from 'react';

import type { IJob } from './lab/model';
import { nameTrouble } from './units';

/** Draw a component again whenever a signal fires. */
export function useSignal<S, A>(signal: ISignal<S, A>): void {
  const [, redraw] = React.useReducer((count: number) => count + 1, 0);
  // A layout effect, as what happens until the others run would be missed.
  React.useLayoutEffect(() => {
    const slot = (): void => redraw();
    signal.connect(slot);
    return () => {
      signal.disconnect(slot);
    };
  }, [signal]);
}

/** How far a long piece of work is. */
export function Progress({ text, fraction }: IJob): React.ReactElement {
  return (
    <>
      <p>{text}</p>
      <progress value={fraction ?? undefined} aria-label={text} />
    </>
  );
}

/**
 * Give the keyboard to what is around an element when that goes away, or to the page's body it falls.
 *
 * @returns what the element's `ref` is to be.
 */
export function useFocusKept<E extends HTMLElement>(): React.RefObject<E> {
  const node = React.useRef<E>(null);
  React.useLayoutEffect(() => {
    const kept = node.current;
    return () => {
      if (kept?.contains(document.activeElement)) {
        kept.parentElement?.closest<HTMLElement>('[tabindex]')?.focus();
      }
    };
  }, []);
  return node;
}

/** A button that is an icon, with a name for those who do not see it. */
export function IconButton(props: {
  icon: LabIcon;
  label: string;
  title?: string;
  disabled?: boolean;
  tabIndex?: number;
  menu?: boolean;
  onClick: (event: React.MouseEvent<HTMLButtonElement>) => void;
}): React.ReactElement {
  const node = useFocusKept<HTMLButtonElement>();
  return (
    <button
      ref={node}
      type="button"
      className="jp-vmlab-button"
      aria-label={props.label}
      aria-haspopup={props.menu ? 'menu' : undefined}
      title={props.title ?? props.label}
      // Not `disabled`, which would take the keyboard from who has just pressed it.
      aria-disabled={props.disabled}
      tabIndex={props.tabIndex}
      onClick={event => {
        event.stopPropagation();
        if (!props.disabled) {
          props.onClick(event);
        }
      }}
    >
      <props.icon.react tag="span" width="16px" height="16px" />
    </button>
  );
}

/** A name being edited in place: Enter keeps it, Escape does not; one that cannot be is said why. */
export function NameEditor(props: {
  name: string;
  label: string;
  /** Why a name cannot be, in a sentence; null if it can. That of a machine, unless it is said. */
  trouble?: (name: string) => string | null;
  /** @returns whether the name was accepted. */
  save: (name: string) => Promise<boolean>;
  close: () => void;
}): React.ReactElement {
  const [name, setName] = React.useState(props.name);
  const [busy, setBusy] = React.useState(false);
  const input = useFocusKept<HTMLInputElement>();
  const trouble = (props.trouble ?? nameTrouble)(name);

  React.useLayoutEffect(() => {
    const node = input.current;
    node?.focus();
    node?.select();
    node?.scrollIntoView({ block: 'nearest' });
  }, [input]);

  const submit = async (): Promise<void> => {
    if (trouble || busy) {
      return;
    }
    if (name === props.name) {
      props.close();
      return;
    }
    setBusy(true);
    if (await props.save(name)) {
      props.close();
    } else {
      setBusy(false);
      input.current?.focus();
    }
  };

  return (
    <input
      ref={input}
      className="jp-vmlab-name-editor"
      aria-label={props.label}
      aria-invalid={trouble !== null}
      title={trouble ?? ''}
      value={name}
      maxLength={80}
      spellCheck={false}
      // Keys typed in a name are no shortcuts of JupyterLab.
      data-lm-suppress-shortcuts="true"
      readOnly={busy}
      onChange={event => setName(event.target.value)}
      onClick={event => event.stopPropagation()}
      onDoubleClick={event => event.stopPropagation()}
      onKeyDown={event => {
        event.stopPropagation();
        if (event.key === 'Enter') {
          void submit();
        } else if (event.key === 'Escape') {
          props.close();
        }
      }}
      onBlur={() => {
        if (!busy) {
          props.close();
        }
      }}
    />
  );
}
