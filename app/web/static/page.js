// The page by itself: every few seconds it asks for this same address again, and changes only what has changed, so that
// scroll, focus, selection and whatever somebody is typing stay. Without it everything works; one has to reload.
"use strict";

const EVERY = 3000;
const PATIENCE = 8000;
const main = document.getElementById("main");
const connection = document.getElementById("connection");
const live = document.getElementById("live");
let timer = 0;
let paused = false;
let lostAt = null;

// Changing what is there -----------------------------------------------------------------------------------------

function isInUse(node) {
  // A form is its user's, and so is what is selected.
  if (node.nodeType === Node.ELEMENT_NODE && node.matches("form, #live, #connection")) return true;
  const selection = document.getSelection();
  return node.nodeType === Node.TEXT_NODE && !selection.isCollapsed && selection.containsNode(node, true);
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.id || node.getAttribute("aria-labelledby") : null;
}

function isAlike(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && keyOf(old) === keyOf(fresh);
}

function takeAttributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    const isOfTheReader = name === "open" || (name === "class" && old.classList.contains("arrived"));
    if (!fresh.hasAttribute(name) && !isOfTheReader) old.removeAttribute(name);
  }
}

function take(old, fresh) {
  if (isInUse(old)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  takeAttributes(old, fresh);
  takeChildren(old, fresh);
}

function takeChildren(old, fresh) {
  const kept = new Map();
  for (const child of old.children) if (keyOf(child)) kept.set(keyOf(child), child);
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const known = keyOf(next) && kept.get(keyOf(next));
    if (known && known.nodeName === next.nodeName) {
      if (known === place) place = place.nextSibling;
      else old.insertBefore(known, place);
      take(known, next);
    } else if (place && isAlike(place, next)) {
      const same = place;
      place = place.nextSibling;
      take(same, next);
    } else {
      const arrived = document.importNode(next, true);
      if (arrived.nodeName === "TR") arrived.classList.add("arrived");
      old.insertBefore(arrived, place);
    }
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    if (!gone.contains(document.activeElement)) gone.remove();
  }
}

// Asking ---------------------------------------------------------------------------------------------------------

function say(text) {
  if (connection.textContent !== text) connection.textContent = text;
}

async function refresh() {
  const answer = await fetch(location.href, { redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.type === "opaqueredirect") {
    stop();
    say("You are signed out: reload the page to sign in again.");
    return;
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const csrf = fresh.querySelector("input[name=csrf]");
  if (csrf) for (const input of document.querySelectorAll("input[name=csrf]")) input.value = csrf.value;
  takeChildren(main, fresh.getElementById("main"));
  if (document.title !== fresh.title) document.title = fresh.title;
  lostAt = null;
  say("");
}

async function beat() {
  timer = 0;
  try {
    await refresh();
  } catch {
    lostAt = lostAt || new Date().toISOString().slice(11, 19);
    say(`The service cannot be reached since ${lostAt} UTC. What you see is from before.`);
  }
  plan();
}

function plan() {
  if (!timer && !paused && !document.hidden) timer = setTimeout(beat, EVERY);
}

function stop() {
  paused = true;
  clearTimeout(timer);
  timer = 0;
}

live.hidden = false;
live.addEventListener("click", () => {
  if (paused) {
    paused = false;
    beat();
  } else {
    stop();
  }
  live.setAttribute("aria-pressed", String(paused));
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    timer = 0;
  } else if (!paused && !timer) {
    beat();
  }
});
plan();
