// The console of a machine under a cell; see console.py. It is sent for each widget, and saved with notebooks, so it
// stays small: the console itself is the Jupyter server's file, which the page holds once, and what is shown where
// there is no such server (pictures.js) comes from the kernel when it is needed.

/** The base URL of the Jupyter server that this page came from, if any. */
function jupyter() {
  let base;
  try {
    base = JSON.parse(document.getElementById('jupyter-config-data').textContent).baseUrl;
  } catch {
    base = document.body.dataset.baseUrl;
  }
  return base ? new URL(base.replace(/\/*$/, '/'), location.href).href : null;
}

/** Show the server's console. Returns how to dispose of it, or a text: why there is none. */
async function live(model, host) {
  const base = jupyter();
  if (!base) {
    return 'this page has no Jupyter server';
  }
  const machine = model.get('machine');
  const kind = model.get('kind');
  let lib;
  try {
    lib = await import(`${base}vmlab/static/console.js`);
  } catch {
    return 'the Jupyter server has no vmlab extension';
  }
  const api = lib.serverApi(base);
  try {
    const known = await api.get(`machines/${encodeURIComponent(machine)}`);
    if (known.uuid !== model.get('uuid')) {
      return 'the Jupyter server knows another machine of this name';
    }
  } catch (error) {
    if (error.status === 404) {
      return 'the Jupyter server does not know this machine';
    }
  }
  const open = () =>
    document.dispatchEvent(
      new CustomEvent('vmlab:open-console', { detail: { machine, kind }, bubbles: true, cancelable: true })
    );
  const changed = ({ mode, readOnly, minimised }) => {
    const traits = { mode, read_only: readOnly, minimised };
    Object.entries(traits).forEach(([name, value]) => value !== undefined && model.set(name, value));
    try {
      model.save_changes();
    } catch {
      // Without a kernel nobody needs to know.
    }
  };
  const View = kind === 'serial' ? lib.SerialView : lib.ConsoleView;
  const view = new View(host, {
    machine,
    baseUrl: base,
    api,
    events: lib.serverEvents(base),
    mode: model.get('mode'),
    readOnly: model.get('read_only'),
    minimised: model.get('minimised'),
    popOut: document.querySelector('.jp-LabShell') ? open : undefined,
    changed
  });
  const fields = { mode: 'mode', read_only: 'readOnly', minimised: 'minimised' };
  const set = () => Object.entries(fields).forEach(([name, field]) => field in view && (view[field] = model.get(name)));
  model.on('change:mode change:read_only change:minimised', set);
  return () => {
    model.off('change:mode change:read_only change:minimised', set);
    view.dispose();
  };
}

/** Ask the kernel for pictures and for the code that shows them. Returns how to end it. */
function pictures(model, host, why) {
  let end = null;
  host.textContent = `${model.get('machine')}: no live console here (${why}). Waiting for pictures from the kernel …`;
  const heard = async message => {
    if (message.what === 'code' && end === null) {
      end = () => {};
      const url = URL.createObjectURL(new Blob([message.code], { type: 'text/javascript' }));
      const code = await import(url);
      URL.revokeObjectURL(url);
      host.textContent = '';
      end = code.pictures(model, host, why);
    }
  };
  model.on('msg:custom', heard);
  try {
    model.send({ do: 'pictures' });
  } catch {
    host.textContent = `${model.get('machine')}: this page has neither a Jupyter server with vmlab nor a kernel.`;
  }
  return () => {
    model.off('msg:custom', heard);
    end?.();
  };
}

function render({ model, el }) {
  let end = null;
  let over = false;
  // The end of the kernel is not the end of a live console.
  const css = '.vmlab-live.jupyter-widgets-disconnected::before { display: none }';
  el.append(Object.assign(document.createElement('style'), { textContent: css }));
  const host = el.appendChild(document.createElement('div'));
  live(model, host).then(made => {
    const isLive = typeof made !== 'string';
    el.classList.toggle('vmlab-live', isLive);
    end = isLive ? made : over ? null : pictures(model, host, made);
    if (over) {
      end?.();
    }
  });
  return () => {
    over = true;
    end?.();
  };
}

export default { render };
