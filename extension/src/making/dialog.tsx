import { Dialog, ReactWidget } from '@jupyterlab/apputils';
import { UseSignal } from '@jupyterlab/ui-components';
import * as React from 'react';

import { showTrouble } from '../dialogs';
import { ApiError } from '../lab/api';
import type { LabModel } from '../lab/model';
import { Progress } from '../parts';
import type { IImage, IMachine } from '../types';
import { freeName, nameTrouble, size } from '../units';
import { readForm } from './form';
import type { IForm } from './form';
import { Making } from './making';

/** A new machine. */
export interface IMade {
  machine: IMachine;
  /** Whether the form was open until it was there. */
  watched: boolean;
}

/**
 * Ask for a new machine, and make it; what was typed stays until that has worked.
 *
 * @returns null if there is none; why was said.
 */
export async function createMachine(model: LabModel, image?: string): Promise<IMade | null> {
  const form = new CreateForm(model, image);
  await new CreateDialog(form).launch();
  const { making } = form;
  if (!making || making.machine) {
    return making?.machine ? { machine: making.machine, watched: true } : null;
  }
  try {
    return { machine: await making.inBackground(), watched: false };
  } catch (error) {
    showTrouble(error);
    return null;
  }
}

/** A dialog that closes when its machine is there, or when nobody wants to wait for that. */
class CreateDialog extends Dialog<void> {
  constructor(private _form: CreateForm) {
    super({
      title: 'New Machine',
      body: _form,
      buttons: [Dialog.cancelButton(), Dialog.okButton({ label: 'Create Machine' })],
      focusNodeSelector: 'select'
    });
    this.addClass('jp-vmlab-create-dialog');
  }

  override resolve(index = 1): void {
    if (index !== 1) {
      super.resolve(index);
      return;
    }
    void this._form.submit().then(made => {
      if (this.isDisposed) {
        return;
      }
      if (made) {
        super.resolve(1);
      } else {
        this._update();
      }
    });
    this._update();
  }

  /** What the buttons do while the machine is being made, and before. */
  private _update(): void {
    const busy = this._form.making !== null;
    const label = this.node.querySelector('.jp-mod-reject .jp-Dialog-buttonLabel');
    if (label) {
      label.textContent = busy ? 'Go On in the Background' : 'Cancel';
      label.setAttribute('aria-label', label.textContent);
    }
    if (busy && this._form.node.contains(document.activeElement)) {
      // Its fields take no keys now; Escape shall still be heard.
      this.node.querySelector<HTMLElement>('.jp-mod-accept')?.focus();
    }
  }
}

class CreateForm extends ReactWidget {
  constructor(
    private _model: LabModel,
    image?: string
  ) {
    super();
    this.addClass('jp-vmlab-create');
    const images = _model.images.filter(one => !one.damaged);
    const first = images.find(one => one.name === image) ?? images.find(one => one.built) ?? images[0];
    this._form = {
      image: first?.name ?? '',
      name: '',
      memory: '',
      vcpus: '',
      wayOut: '',
      disk: '',
      forwards: '',
      firmware: '',
      sound: '',
      kernelArgs: '',
      start: true
    };
  }

  /** The machine that is being made, or was. */
  making: Making | null = null;

  /** @returns whether the machine was made; the dialog says why not. */
  async submit(): Promise<boolean> {
    if (this.making) {
      return false;
    }
    const name = this._name;
    const asked = readForm({ ...this._form, name });
    if (typeof asked === 'string') {
      this._say(asked);
      return false;
    }
    this.making = new Making(this._model, { ...asked, name });
    this._say('');
    try {
      await this.making.outcome;
      return true;
    } catch (error) {
      this.making = null;
      this._say(
        error instanceof ApiError && error.hint
          ? `${error.message} Next: ${error.hint}`
          : String(error instanceof Error ? error.message : error)
      );
      return false;
    }
  }

  protected render(): React.ReactElement {
    return <UseSignal signal={this._model.changed}>{() => this._fields()}</UseSignal>;
  }

  /** What was typed, or the name that is proposed. */
  private get _name(): string {
    return (
      this._form.name.trim() ||
      freeName(
        this._form.image || 'machine',
        this._model.machines.map(machine => machine.name)
      )
    );
  }

  private _fields(): React.ReactElement {
    const form = this._form;
    const { images } = this._model;
    const image = images.find(one => one.name === form.image);
    const proposed = freeName(
      form.image,
      this._model.machines.map(machine => machine.name)
    );
    const trouble = form.name ? nameTrouble(form.name) : null;
    const taken = !this.making && this._model.machine(form.name) !== undefined;
    return (
      <fieldset disabled={this.making !== null}>
        <Field label="Image" help={image?.description}>
          <select
            className="jp-mod-styled"
            value={form.image}
            onChange={event => this._set({ image: event.target.value })}
          >
            {images.map(one => (
              <option key={one.name} value={one.name}>
                {imageLabel(one)}
              </option>
            ))}
          </select>
        </Field>
        <Field
          label="Name"
          help={trouble ?? (taken ? 'There is a machine of that name already.' : '')}
          wrong={trouble !== null || taken}
        >
          <input
            className="jp-mod-styled"
            value={form.name}
            placeholder={proposed}
            maxLength={40}
            spellCheck={false}
            aria-invalid={trouble !== null || taken}
            onChange={event => this._set({ name: event.target.value })}
          />
        </Field>
        <div className="jp-vmlab-create-pair">
          <Field label="Memory (MiB)">
            <input
              className="jp-mod-styled"
              type="number"
              min={1}
              value={form.memory}
              placeholder={image ? String(image.memory) : ''}
              onChange={event => this._set({ memory: event.target.value })}
            />
          </Field>
          <Field label="CPUs">
            <input
              className="jp-mod-styled"
              type="number"
              min={1}
              value={form.vcpus}
              placeholder={image ? String(image.vcpus) : ''}
              onChange={event => this._set({ vcpus: event.target.value })}
            />
          </Field>
        </div>
        <Choice
          label="Way out"
          value={form.wayOut}
          choices={{
            '': 'as the image has it',
            internet: 'the internet, but not this host',
            site: 'also private nets',
            host: 'also this host itself',
            none: 'no network'
          }}
          onChange={wayOut => this._set({ wayOut })}
        />
        <details>
          <summary>More</summary>
          <Field label="Forwarded ports" help="Ports of this host that lead into the guest, such as 8080:80">
            <input
              className="jp-mod-styled"
              value={form.forwards}
              onChange={event => this._set({ forwards: event.target.value })}
            />
          </Field>
          <Field label="System disk (GiB)" help="At least the size that the image has">
            <input
              className="jp-mod-styled"
              type="number"
              min={0}
              step="any"
              value={form.disk}
              placeholder="as the image has it"
              onChange={event => this._set({ disk: event.target.value })}
            />
          </Field>
          <Choice
            label="Firmware"
            value={form.firmware}
            choices={{
              '': 'as the image has it',
              bios: 'BIOS',
              uefi: 'UEFI'
            }}
            onChange={firmware => this._set({ firmware })}
          />
          <Choice
            label="Sound"
            value={form.sound}
            choices={{
              '': 'as the image has it',
              none: 'no sound card',
              silent: 'a sound card that nobody hears',
              wav: 'a sound card, recorded to a file'
            }}
            onChange={sound => this._set({ sound })}
          />
          <Field label="Kernel arguments" help="Added to the command line">
            <input
              className="jp-mod-styled"
              value={form.kernelArgs}
              spellCheck={false}
              onChange={event => this._set({ kernelArgs: event.target.value })}
            />
          </Field>
          <label className="jp-vmlab-check">
            <input
              type="checkbox"
              checked={form.start}
              onChange={event => this._set({ start: event.target.checked })}
            />
            Start it
          </label>
        </details>
        {form.memory || form.vcpus || form.disk || form.firmware ? (
          <p className="jp-vmlab-dim">
            Other hardware than the image’s own: the guest boots, instead of going on from the image’s ready
            state.
          </p>
        ) : null}
        <div className="jp-vmlab-create-say" role="status" aria-live="polite">
          {this.making && <Progress {...this.making.progress} />}
          {this._trouble && <p className="jp-vmlab-wrong">{this._trouble}</p>}
        </div>
      </fieldset>
    );
  }

  private _set(values: Partial<IForm>): void {
    this._form = { ...this._form, ...values };
    this._say('');
  }

  private _say(trouble: string): void {
    this._trouble = trouble;
    this.update();
  }

  private _form: IForm;
  private _trouble = '';
}

function imageLabel(image: IImage): string {
  return image.built
    ? `${image.title} (${size(image.size)})`
    : `${image.title}, not built yet: takes some minutes`;
}

function Field(props: {
  label: string;
  help?: string;
  wrong?: boolean;
  children: React.ReactElement;
}): React.ReactElement {
  const id = React.useId();
  return (
    <div className="jp-vmlab-field">
      <label htmlFor={id}>{props.label}</label>
      {React.cloneElement(props.children, {
        id,
        'aria-describedby': props.help ? `${id}-help` : undefined
      })}
      {props.help && (
        <p id={`${id}-help`} className={props.wrong ? 'jp-vmlab-wrong' : 'jp-vmlab-dim'}>
          {props.help}
        </p>
      )}
    </div>
  );
}

function Choice<T extends string>(props: {
  label: string;
  value: T;
  choices: Record<T, string>;
  onChange: (value: T) => void;
}): React.ReactElement {
  return (
    <Field label={props.label}>
      <select
        className="jp-mod-styled"
        value={props.value}
        onChange={event => props.onChange(event.target.value as T)}
      >
        {Object.entries<string>(props.choices).map(([value, label]) => (
          <option key={value} value={value}>
            {label}
          </option>
        ))}
      </select>
    </Field>
  );
}
