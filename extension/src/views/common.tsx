import type { LabIcon } from '@jupyterlab/ui-components';
import type { ISignal } from '@lumino/signaling';
import * as React from 'react';

import { nameTrouble } from '../units';

/** Draw a component again whenever a signal fires. */
export function useSignal<S, A>(signal: ISignal<S, A>): void {
  const [, redraw] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const slot = (): void => redraw();
    signal.connect(slot);
    return () => {
      signal.disconnect(slot);
    };
  }, [signal]);
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
  return (
    <button
      type="button"
      className="jp-vmlab-button"
      aria-label={props.label}
      aria-haspopup={props.menu ? 'menu' : undefined}
      title={props.title ?? props.label}
      disabled={props.disabled}
      tabIndex={props.tabIndex}
      onClick={event => {
        event.stopPropagation();
        props.onClick(event);
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
  /** @returns whether the name was accepted. */
  save: (name: string) => Promise<boolean>;
  close: () => void;
}): React.ReactElement {
  const [name, setName] = React.useState(props.name);
  const [busy, setBusy] = React.useState(false);
  const input = React.useRef<HTMLInputElement>(null);
  const trouble = nameTrouble(name);

  React.useLayoutEffect(() => {
    const node = input.current;
    node?.focus();
    node?.select();
    node?.scrollIntoView({ block: 'nearest' });
    return () => {
      if (document.activeElement === node) {
        // The keyboard goes on where the name is.
        node?.closest<HTMLElement>('[tabindex]')?.focus();
      }
    };
  }, []);

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
      maxLength={40}
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
