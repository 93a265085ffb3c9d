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

/** Whether somebody on this page opens consoles in tabs: JupyterLab and Notebook 7 with our extension. */
function opened(detail) {
  const event = new CustomEvent('vmlab:open-console', { detail, bubbles: true, cancelable: true });
  return !document.dispatchEvent(event);
}

let failed = 0;

/** The server's module. A browser remembers that a URL has failed, so it is another one then. */
async function load(base) {
  const url = `${base}vmlab/static/console.js`;
  try {
    return await import(failed ? `${url}?again=${failed}` : url);
  } catch {
    failed++;
    const answer = await fetch(url, { cache: 'no-store' }).catch(() => null);
    if (answer?.status === 404) {
      throw { why: 'the Jupyter server has no vmlab extension' };
    }
    throw { why: 'the Jupyter server cannot be reached', again: true };
  }
}

/** The name that our machine has now, if it is there. */
async function nameOf(model, api) {
  const machines = await api.get('machines');
  const name = model.get('machine');
  const ours = machines.find(({ uuid }) => uuid === model.get('uuid'));
  if (!ours && machines.some(other => other.name === name)) {
    throw { why: 'the Jupyter server knows another machine of this name' };
  }
  return ours?.name;
}

/**
 * Show the server's console. Returns how to dispose of it; throws why there is none, and whether to try again.
 * `renamed` is called when the machine has got another name, which is then in `model`.
 */
async function live(model, host, renamed) {
  const base = jupyter();
  if (!base) {
    throw { why: 'this page has no Jupyter server' };
  }
  const lib = await load(base);
  const api = lib.serverApi(base);
  const kind = model.get('kind');
  const save = traits => {
    Object.entries(traits).forEach(([name, value]) => value !== undefined && model.set(name, value));
    try {
      model.save_changes();
    } catch {
      // Without a kernel nobody needs to know.
    }
  };
  let machine = model.get('machine');
  const follow = async () => {
    const name = await nameOf(model, api);
    const other = name !== undefined && name !== machine;
    if (other) {
      machine = name;
      save({ machine });
    }
    return { gone: name === undefined, other };
  };
  // If it cannot be asked, the console says so itself.
  const { gone } = await follow().catch(error => (error.why ? Promise.reject(error) : {}));
  if (gone) {
    throw { why: 'the Jupyter server does not know this machine' };
  }
  const events = lib.serverEvents(base);
  const View = kind === 'serial' ? lib.SerialView : lib.ConsoleView;
  const view = new View(host, {
    machine,
    baseUrl: base,
    api,
    events,
    mode: model.get('mode'),
    readOnly: model.get('read_only'),
    minimised: model.get('minimised'),
    popOut: opened({}) ? () => opened({ machine, kind }) : undefined,
    changed: ({ mode, readOnly, minimised }) => save({ mode, read_only: readOnly, minimised })
  });
  const fields = { mode: 'mode', read_only: 'readOnly', minimised: 'minimised' };
  const set = () => Object.entries(fields).forEach(([name, field]) => field in view && (view[field] = model.get(name)));
  model.on('change:mode change:read_only change:minimised', set);
  const deaf = events.subscribe(event => {
    if (event.kind === 'reload' || (event.kind === 'machine-gone' && event.machine === machine)) {
      follow().then(({ other }) => other && renamed(), () => {});
    }
  });
  return () => {
    deaf();
    model.off('change:mode change:read_only change:minimised', set);
    view.dispose();
  };
}

/** Ask the kernel for pictures and for the code that shows them. Returns how to end it. */
function pictures(model, host, why) {
  let end = null;
  let over = false;
  host.textContent = `${model.get('machine')}: no live console here (${why}). Waiting for pictures from the kernel …`;
  const heard = async message => {
    if (message.what === 'code' && end === null) {
      end = () => {};
      const url = URL.createObjectURL(new Blob([message.code], { type: 'text/javascript' }));
      const code = await import(url);
      URL.revokeObjectURL(url);
      if (!over) {
        host.textContent = '';
        end = code.pictures(model, host, why);
      }
    }
  };
  model.on('msg:custom', heard);
  try {
    model.send({ do: 'pictures' });
  } catch {
    host.textContent = `${model.get('machine')}: this page has neither a Jupyter server with vmlab nor a kernel.`;
  }
  return () => {
    over = true;
    model.off('msg:custom', heard);
    end?.();
  };
}

function render({ model, el }) {
  let end = null;
  let attempt = 0;
  // The end of the kernel is not the end of a live console.
  const css = '.vmlab-live.jupyter-widgets-disconnected::before { display: none }';
  el.append(Object.assign(document.createElement('style'), { textContent: css }));
  const host = el.appendChild(document.createElement('div'));
  const again = el.appendChild(document.createElement('button'));
  again.textContent = 'Try again to show it live';
  again.dataset.lmSuppressShortcuts = 'true';
  const show = async () => {
    const mine = ++attempt;
    end?.();
    end = null;
    host.replaceChildren();
    again.hidden = true;
    let made;
    let isLive = true;
    try {
      made = await live(model, host, show);
    } catch (error) {
      isLive = false;
      again.hidden = !error.again;
      made = mine === attempt ? pictures(model, host, error.why ?? error.message) : () => {};
    }
    if (mine === attempt) {
      el.classList.toggle('vmlab-live', isLive);
      end = made;
    } else {
      made();
    }
  };
  const online = () => again.hidden || show();
  again.addEventListener('click', show);
  window.addEventListener('online', online);
  show();
  return () => {
    attempt = -1;
    window.removeEventListener('online', online);
    end?.();
  };
}

export default { render };
