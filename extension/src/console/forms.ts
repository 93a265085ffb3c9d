/** The small forms that open below the toolbar's buttons. */
import { h, QUIET } from './dom';
import { closedAgain, Popup } from './popup';

function button(label: string, kind: 'main' | 'plain' = 'plain'): HTMLButtonElement {
  return h(
    'button',
    { type: 'button', class: kind === 'main' ? 'vmlab-console-help' : 'vmlab-console-plain', ...QUIET },
    label
  );
}

/** Ask for one line of text; Enter takes it, Escape goes away. An empty answer is one, too. */
export function askLine(
  home: HTMLElement,
  anchor: HTMLElement,
  question: { label: string; placeholder: string; action: string },
  done: (text: string) => void
): void {
  if (closedAgain(anchor)) {
    return;
  }
  const popup = new Popup(home, anchor, question.label);
  const input = h('input', {
    type: 'text',
    'data-first': true,
    placeholder: question.placeholder,
    'aria-label': question.label,
    spellcheck: 'false',
    ...QUIET
  });
  const go = button(question.action, 'main');
  const take = (): void => {
    popup.close();
    done(input.value.trim());
  };
  go.addEventListener('click', take);
  input.addEventListener('keydown', event => {
    if (event.key === 'Enter') {
      event.preventDefault();
      take();
    }
  });
  popup.fill(h('div', { class: 'vmlab-console-form vmlab-line' }, input, go));
}

/** Ask whether to do something that cannot be taken back. */
export function confirm(
  home: HTMLElement,
  anchor: HTMLElement,
  question: { text: string; action: string },
  done: () => void
): void {
  const popup = new Popup(home, anchor, question.action);
  const cancel = button('Cancel');
  const go = button(question.action, 'main');
  go.classList.add('vmlab-danger');
  cancel.addEventListener('click', () => popup.close());
  go.addEventListener('click', () => {
    popup.close();
    done();
  });
  popup.fill(
    h(
      'div',
      { class: 'vmlab-console-form' },
      h('p', {}, question.text),
      h('div', { class: 'vmlab-row' }, cancel, go)
    )
  );
}

/** Ask for a text to type; `type` does it, can be stopped, and returns the characters that it left out. */
export function askText(
  home: HTMLElement,
  anchor: HTMLElement,
  type: (text: string, progress: (fraction: number) => void, signal: AbortSignal) => Promise<string[]>
): void {
  if (closedAgain(anchor)) {
    return;
  }
  const abort = new AbortController();
  const popup = new Popup(home, anchor, 'Type text into the guest', () => abort.abort());
  const area = h('textarea', {
    rows: '5',
    'data-first': true,
    placeholder: 'Paste or write here what is to be typed in the guest',
    'aria-label': 'Text to type in the guest',
    spellcheck: 'false',
    ...QUIET
  });
  const note = h('div', { class: 'vmlab-console-note', role: 'status' }, 'Typed as on a US keyboard.');
  const bar = h('progress', { max: '1', value: '0', hidden: true, 'aria-label': 'Typed' });
  const cancel = button('Cancel');
  const go = button('Type', 'main');
  cancel.addEventListener('click', () => popup.close());
  const run = async (): Promise<void> => {
    if (area.value === '' || go.disabled) {
      return;
    }
    popup.busy = go.disabled = area.readOnly = true;
    bar.hidden = false;
    note.textContent = 'Typing …';
    cancel.textContent = 'Stop';
    try {
      const left = await type(area.value, fraction => (bar.value = fraction), abort.signal);
      if (left.length === 0) {
        popup.close();
        return;
      }
      note.textContent = `Left out, as no key of a US keyboard gives it: ${left.slice(0, 20).join(' ')}`;
    } catch (error) {
      note.textContent = error instanceof Error ? error.message : String(error);
    }
    bar.hidden = true;
    popup.busy = go.disabled = area.readOnly = false;
    cancel.textContent = 'Close';
  };
  go.addEventListener('click', () => void run());
  area.addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      void run();
    }
  });
  popup.fill(
    h('div', { class: 'vmlab-console-form' }, area, note, bar, h('div', { class: 'vmlab-row' }, cancel, go))
  );
  // Browsers ask first, or say no: then the box stays empty, and pasting into it works.
  navigator.clipboard?.readText?.().then(
    text => {
      if (popup.element.isConnected && area.value === '') {
        area.value = text;
        area.select();
      }
    },
    () => undefined
  );
}
