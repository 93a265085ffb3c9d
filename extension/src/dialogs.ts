import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

import { ApiError } from './lab/api';

/** Characters of a notification that JupyterLab shows; it cuts the rest off. */
const SHOWN = 140;

/** Show what went wrong and what to do next. */
export function showTrouble(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
  const hint = error instanceof ApiError && error.hint ? `Next: ${error.hint}` : '';
  const whole = hint ? `${message}\n${hint}` : message;
  if (whole.length <= SHOWN) {
    Notification.error(whole, { autoClose: false });
    return;
  }
  Notification.error(message, {
    autoClose: false,
    actions: [
      {
        label: 'What to Do',
        callback: () =>
          void showDialog({
            title: message,
            body: hint || message,
            buttons: [Dialog.okButton({ label: 'Close' })]
          })
      }
    ]
  });
}

/** A text that is asked for. */
export interface IField {
  label: string;
  value?: string;
  placeholder?: string;
  /** A number from this to that. */
  range?: [number, number];
  /** A regular expression that the whole text must match. */
  pattern?: string;
  /** What is said where the text cannot be. */
  wrong?: string;
}

/**
 * Ask for several texts at once.
 *
 * @returns The texts, without spaces around them, in the order of the fields; null if it was cancelled.
 */
export async function askTexts(title: string, fields: IField[], okLabel: string): Promise<string[] | null> {
  const result = await showDialog({
    title,
    body: new TextsForm(fields),
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: okLabel })],
    focusNodeSelector: 'input'
  });
  return result.button.accept ? result.value : null;
}

class TextsForm extends Widget implements Dialog.IBodyWidget<string[]> {
  constructor(fields: IField[]) {
    super();
    this.addClass('jp-vmlab-form');
    this._inputs = fields.map(field => this._add(field));
  }

  getValue(): string[] {
    return this._inputs.map(input => input.value.trim());
  }

  private _add(field: IField): HTMLInputElement {
    const box = document.createElement('div');
    box.className = 'jp-vmlab-field';
    const label = document.createElement('label');
    label.textContent = field.label;
    const input = document.createElement('input');
    input.className = 'jp-mod-styled';
    input.spellcheck = false;
    input.value = field.value ?? '';
    input.placeholder = field.placeholder ?? '';
    if (field.pattern) {
      input.pattern = field.pattern;
    }
    if (field.range) {
      input.type = 'number';
      [input.min, input.max] = field.range.map(String);
      input.required = true;
    }
    const wrong = document.createElement('p');
    wrong.className = 'jp-vmlab-wrong';
    wrong.id = `jp-vmlab-wrong-${++fieldCount}`;
    input.id = `${wrong.id}-input`;
    label.htmlFor = input.id;
    input.setAttribute('aria-describedby', wrong.id);
    // The dialog itself lets nobody accept what the browser finds invalid.
    input.addEventListener('input', () => {
      const valid = input.validity.valid;
      input.setAttribute('aria-invalid', String(!valid));
      wrong.textContent = valid ? '' : (field.wrong ?? input.validationMessage);
    });
    box.append(label, input, wrong);
    this.node.append(box);
    return input;
  }

  private _inputs: HTMLInputElement[];
}

let fieldCount = 0;
