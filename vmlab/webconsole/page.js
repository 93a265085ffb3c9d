// The web console's page. The invitation behind the # is shown once; the keys that it gave live in this tab only
// (sessionStorage belongs to one tab and to one port, unlike a cookie), so a reload finds them again.
import { ConsoleView } from './console.js';

const KEPT = 'vmlab.consoles';
const PULSE = 20_000; // ms; the web console ends some minutes after the last sign of a page
const note = document.getElementById('note');

async function post(path, body) {
  const answer = await fetch(path, { method: 'POST', body: JSON.stringify(body) });
  if (!answer.ok) {
    throw new Error(String(answer.status));
  }
  return answer.json();
}

async function enter() {
  const invitation = location.hash.slice(1);
  // Out of the address, so that it is neither kept in the history nor copied with it.
  history.replaceState(null, '', location.pathname);
  if (invitation) {
    try {
      const consoles = await post('enter', { invitation });
      sessionStorage.setItem(KEPT, JSON.stringify(consoles));
      return consoles;
    } catch {
      // Used already: perhaps by this very tab.
    }
  }
  return JSON.parse(sessionStorage.getItem(KEPT) ?? 'null');
}

function show(consoles) {
  const main = document.querySelector('main');
  main.classList.toggle('one', consoles.length === 1);
  document.title = `${consoles.map(({ machine }) => machine).join(', ')} · vmlab`;
  for (const { machine, key } of consoles) {
    const host = main.appendChild(document.createElement('section'));
    const wsUrl = `ws://${location.host}/console?token=${encodeURIComponent(key)}`;
    new ConsoleView(host, { machine, baseUrl: '/', wsUrl });
  }
}

async function pulse(key) {
  try {
    await post('here', { key });
    note.textContent = '';
  } catch {
    note.textContent = 'The web console has ended. Start it again with: vmlab console NAME';
  }
}

const consoles = await enter();
if (consoles) {
  note.textContent = '';
  show(consoles);
  setInterval(() => pulse(consoles[0].key), PULSE);
} else {
  note.textContent =
    'This address works once, in one tab, and it was used already. Start a new one with: vmlab console NAME';
}
