// What the page can do beyond showing: it keeps itself fresh, and copies UIDs. Without it everything works, by hand.
'use strict';
const LEAST = 1000, POLL = 10000, STILL = 30000; // ms: between two looks; without events; with events, for the ages
let connected = false, last = 0, due = 0, looking = false;

/** Make an element as the new one is, and leave alone what is the same: so focus, scroll and open details stay. */
function morph(now, next) {
  if (now.isEqualNode(next)) return;
  if (now.nodeType !== 1 || now.tagName !== next.tagName || now.id !== next.id) return now.replaceWith(next);
  if (now.matches('select, input, textarea')) return; // somebody may be choosing
  for (const { name } of [...now.attributes]) {
    if (!next.hasAttribute(name) && name !== 'open') now.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (name === 'hidden' && now.matches('.copy')) continue;
    if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  }
  const byId = new Map([...now.children].filter(it => it.id).map(it => [it.id, it]));
  let at = now.firstChild;
  for (const child of [...next.childNodes]) {
    const known = child.id && byId.get(child.id);
    if (known && known !== at) now.insertBefore(known, at);
    else if (!known && child.id) { now.insertBefore(child, at); continue; }
    else if (!at) { now.append(child); continue; }
    const one = known || at;
    at = one.nextSibling;
    morph(one, child);
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
}

async function look() {
  if (looking || document.hidden) return;
  looking = true;
  last = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: 'text/html' }, credentials: 'same-origin' });
    if (answer.redirected && new URL(answer.url).pathname !== location.pathname) return location.reload();
    if (!(answer.headers.get('content-type') || '').includes('text/html')) return;
    const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const part of document.querySelectorAll('[data-live]')) {
      const found = next.getElementById(part.id);
      if (found) morph(part, document.importNode(found, true));
    }
    ready();
  } catch {
    // The service is away: the next look may find it.
  } finally {
    looking = false;
  }
}

/** Look soon, but not more often than is good. */
function soon() {
  clearTimeout(due);
  due = setTimeout(look, Math.max(100, last + LEAST - Date.now()));
}

function listen() {
  if (!window.EventSource) return;
  const events = new EventSource('/api/v1/events');
  events.onopen = () => { connected = true; };
  events.onerror = () => { connected = false; };
  for (const name of ['study', 'delivery', 'destination', 'readiness']) events.addEventListener(name, soon);
  addEventListener('pagehide', () => events.close());
}

function ready() {
  for (const button of document.querySelectorAll('.copy[hidden]')) button.hidden = false;
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch { // over plain HTTP a browser gives no clipboard
    const field = document.createElement('textarea');
    field.value = button.dataset.copy;
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
    button.focus();
  }
  button.classList.add('copied');
  setTimeout(() => button.classList.remove('copied'), 1500);
}

document.addEventListener('click', event => {
  const button = event.target.closest('.copy');
  if (button) copy(button);
});
document.addEventListener('visibilitychange', () => { if (!document.hidden) soon(); });
setInterval(() => { if (Date.now() - last > (connected ? STILL : POLL) - 500) look(); }, 1000);
last = Date.now();
ready();
listen();
