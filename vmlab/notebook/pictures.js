// A console made of pictures that the kernel sends, with clicks and keys: for pages without a Jupyter server of ours.
// Sent by console.py when console.js asks for it.
const CSS = `
.vmlab-pictures {
  font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, inherit);
}
.vmlab-pictures .bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 0 0 4px }
.vmlab-pictures .screen {
  display: inline-block; max-width: 100%; cursor: default; outline: 1px solid var(--jp-border-color1, #bbb);
}
.vmlab-pictures .screen:focus { outline: 3px solid var(--jp-brand-color1, #1976d2) }
.vmlab-pictures.actual .screen { overflow: auto }
.vmlab-pictures img {
  display: block; max-width: 100%; height: auto; min-width: 1px; min-height: 1px; margin: 0; user-select: none;
  touch-action: none;
}
.vmlab-pictures.actual img { max-width: none }
.vmlab-pictures.small .screen { width: 160px; opacity: .7 }
.vmlab-pictures pre {
  margin: 0; padding: 6px; max-height: 30em; min-width: 20em; overflow: auto; white-space: pre-wrap;
  color: #ddd; background: #111;
}
.vmlab-pictures .note { color: var(--jp-ui-font-color2, gray) }
.vmlab-pictures .note:empty { display: none }`;

const TYPING = 'Keys go to the guest; Ctrl+Alt, or a click elsewhere, to leave.';

/** Show them in `host`; `why` says why it is not live. Returns how to end it. */
export function pictures(model, host, why) {
  const serial = model.get('kind') === 'serial';
  const make = (tag, parent, props) => parent.appendChild(Object.assign(document.createElement(tag), props));
  make('style', host, { textContent: CSS });
  host.classList.add('vmlab-pictures');
  const bar = make('div', host, { className: 'bar' });
  make('b', bar, { textContent: model.get('machine') });
  make('span', bar, { className: 'note', textContent: `pictures from the kernel, not live: ${why}` });
  const button = (textContent, title, act) => {
    const made = make('button', bar, { textContent, title, type: 'button' });
    made.dataset.lmSuppressShortcuts = 'true';
    made.addEventListener('click', act);
    return made;
  };
  const screen = make('div', host, { className: 'screen', tabIndex: 0 });
  screen.dataset.lmSuppressShortcuts = 'true';
  screen.setAttribute('role', 'application');
  screen.setAttribute('aria-label', `${serial ? 'Serial line' : 'Screen'} of ${model.get('machine')}`);
  const area = make(serial ? 'pre' : 'img', screen, serial ? {} : { alt: '', draggable: false });
  const link = make('div', host, { className: 'note' });
  const note = make('div', host, { className: 'note', role: 'status' });

  let [onScreen, asked, sent, seen, pause, timer] = [false, 0, 0, null, 500, 0];
  let sticky = 0; // an error stays for some seconds
  const say = (text, stay = 0) => {
    if (text && (stay || Date.now() > sticky)) {
      sticky = Date.now() + stay;
      note.textContent = text;
    } else if (!text && Date.now() > sticky) {
      note.textContent = '';
    }
  };
  const tell = message => {
    try {
      model.send(message);
    } catch {
      say('There is no kernel: this is the last picture.');
    }
  };
  const ask = () => {
    clearTimeout(timer);
    const wanted = onScreen && document.visibilityState === 'visible' && !model.get('minimised');
    if (wanted && Date.now() - asked > 60_000) {
      asked = Date.now();
      tell({ do: 'look', seen });
    }
  };
  const answered = busy => {
    asked = 0;
    pause = busy ? 250 : Math.min(pause * 1.5, 1500);
    timer = setTimeout(ask, pause);
  };

  // Input: one message at a time; what comes meanwhile is gathered.
  let waiting = [];
  const flush = () => {
    if (waiting.length && Date.now() - sent > 20_000) {
      sent = Date.now();
      tell({ do: 'input', events: waiting.splice(0) });
    }
  };
  const input = event => {
    if (model.get('read_only')) {
      return;
    }
    const last = waiting.at(-1);
    if (event.type === 'text' && last?.type === 'text') {
      last.text += event.text;
    } else if (event.type === 'move' && last?.type === 'move') {
      Object.assign(last, event);
    } else {
      waiting.push(event);
    }
    flush();
  };

  const heard = (message, buffers) => {
    if (message.what === 'picture') {
      const url = URL.createObjectURL(new Blob([buffers[0]], { type: 'image/png' }));
      area.onload = () => URL.revokeObjectURL(url);
      area.src = url;
      seen = message.seen;
    } else if (message.what === 'text') {
      area.textContent = seen = message.text;
      area.scrollTop = area.scrollHeight;
    } else if (message.what === 'webconsole') {
      link.textContent = 'Live, once, in one tab: ';
      make('a', link, { href: message.address, target: '_blank', rel: 'noreferrer', textContent: message.address });
      say('');
      return;
    }
    if (message.what === 'done') {
      sent = 0;
      flush();
      pause = 250;
      ask();
      return;
    }
    if (message.what === 'error') {
      say([message.message, message.hint && `Next: ${message.hint}`].filter(Boolean).join(' '), 5000);
      sent = 0;
    } else {
      say(message.message ?? (document.activeElement === screen ? TYPING : ''));
    }
    answered(message.what === 'picture' || message.what === 'text');
  };

  const place = event => ({
    x: Math.floor((event.offsetX * area.naturalWidth) / area.clientWidth),
    y: Math.floor((event.offsetY * area.naturalHeight) / area.clientHeight),
    button: ['left', 'middle', 'right'][event.button] ?? 'left'
  });
  const on = (type, act, keep) =>
    screen.addEventListener(type, event => {
      if (!keep) {
        event.preventDefault();
      }
      event.stopPropagation();
      act(event);
    });
  if (!serial) {
    on('pointerdown', event => {
      screen.focus({ preventScroll: true });
      area.setPointerCapture(event.pointerId);
      input({ type: 'down', ...place(event) });
    });
    on('pointerup', event => input({ type: 'up', ...place(event) }));
    on('pointermove', event => document.activeElement === screen && input({ type: 'move', ...place(event) }));
    on('contextmenu', () => {});
    screen.addEventListener(
      'wheel',
      event => {
        if (document.activeElement === screen) {
          event.preventDefault();
          input({ type: 'wheel', clicks: event.deltaY < 0 ? 1 : -1 });
        }
      },
      { passive: false }
    );
  }
  const BYTES = { Enter: '\n', Backspace: '\x7f', Tab: '\t', Escape: '\x1b' };
  Object.assign(BYTES, { ArrowUp: '\x1b[A', ArrowDown: '\x1b[B', ArrowRight: '\x1b[C', ArrowLeft: '\x1b[D' });
  // The left Ctrl and Alt, pressed and let go with no other key between: the way out, as in a live console.
  const down = new Set();
  let alone = true;
  screen.addEventListener('keyup', event => {
    event.stopPropagation();
    const chord = alone && down.size === 2 && down.has(event.code);
    down.delete(event.code);
    alone ||= down.size === 0;
    if (chord) {
      small.focus();
    }
  });
  screen.addEventListener('keydown', event => {
    const modifier = event.code === 'ControlLeft' || event.code === 'AltLeft';
    modifier ? down.add(event.code) : (alone = false);
    const { key, ctrlKey, altKey, metaKey, shiftKey } = event;
    event.stopPropagation();
    if ((ctrlKey || metaKey) && (key === 'v' || (key === 'c' && !getSelection().isCollapsed))) {
      return; // the page's own copy and paste
    }
    event.preventDefault();
    if (/^(Shift|Control|Alt|AltGraph|Meta|Dead|Process|Unidentified)$/.test(key)) {
      return;
    }
    const plain = key.length === 1 && !((ctrlKey || altKey) && !event.getModifierState('AltGraph')) && !metaKey;
    if (plain) {
      input({ type: 'text', text: key });
    } else if (serial) {
      const text = ctrlKey && key.length === 1 ? String.fromCharCode(key.toUpperCase().charCodeAt(0) & 31) : BYTES[key];
      text && input({ type: 'text', text });
    } else {
      const held = [ctrlKey && 'ctrl', altKey && 'alt', metaKey && 'meta', shiftKey && 'shift'].filter(Boolean);
      input({ type: 'keys', keys: [...held, key.toLowerCase()].join('-') });
    }
  });
  on('paste', event => input({ type: 'text', text: event.clipboardData.getData('text/plain') }));
  screen.addEventListener('focus', () => {
    down.clear();
    alone = true;
    say(TYPING);
  });
  screen.addEventListener('blur', () => say(''));

  if (!serial) {
    button('Ctrl-Alt-Del', 'Press Ctrl-Alt-Del in the guest', () => input({ type: 'keys', keys: 'ctrl-alt-delete' }));
  }
  const small = button('', 'Pictures stop; the guest runs on', () => {
    model.set('minimised', !model.get('minimised'));
    model.save_changes();
  });
  if (!serial) {
    button('Live in a browser', 'Start a web console of this screen, for one tab of a browser on this host', () => {
      say('Starting …');
      tell({ do: 'webconsole' });
    });
  }
  const shape = () => {
    host.classList.toggle('small', model.get('minimised'));
    host.classList.toggle('actual', model.get('mode') === 'actual');
    small.textContent = model.get('minimised') ? 'Restore' : 'Minimise';
    ask();
  };

  const watcher = new IntersectionObserver(entries => {
    onScreen = entries.at(-1).isIntersecting;
    ask();
  });
  watcher.observe(screen);
  document.addEventListener('visibilitychange', ask);
  const slow = setInterval(() => {
    const old = Math.round((Date.now() - asked) / 1000);
    if (asked && old > 3) {
      say(`The kernel is busy, or gone: this picture is ${old} s old.`);
    }
  }, 1000);
  model.on('msg:custom', heard);
  model.on('change:minimised change:mode', shape);
  shape();
  return () => {
    clearTimeout(timer);
    clearInterval(slow);
    watcher.disconnect();
    document.removeEventListener('visibilitychange', ask);
    model.off('msg:custom', heard);
    model.off('change:minimised change:mode', shape);
  };
}
