// Runs at every mount of the guide's card. Where a person is in it stays in this browser: a number of a step, or
// closed. What is done is read from the page itself, by the selectors that the steps carry.
const KEY = "model-surgery-guide", LOOK = 300, IDLE = 2000;

if (element.guideStop) element.guideStop();
const life = new AbortController();
const on = function (target, type, handler) { target.addEventListener(type, handler, { signal: life.signal }); };

const card = element.querySelector(".ms-guide");
const steps = Array.from(card.querySelectorAll(".ms-guide-step"));
const button = function (name) { return card.querySelector("#guide-" + name); };
let at = 0;
let waiting = false;   // the step was seen undone: once it is done, the person has done it
let touched = 0;       // when a hand was last on the page

function remembered() {
  try { return localStorage.getItem(KEY); } catch (error) { return "closed"; }
}

function remember(what) {
  try { localStorage.setItem(KEY, String(what)); } catch (error) { /* it opens at the next visit again */ }
}

function control() { return document.querySelector(steps[at].dataset.control); }

function still() { return matchMedia("(prefers-reduced-motion: reduce)").matches; }

function scroll(node, block) { node.scrollIntoView({ block: block, behavior: still() ? "auto" : "smooth" }); }

function unmark() {
  document.querySelectorAll("[data-guided]").forEach(function (node) { delete node.dataset.guided; });
}

function mark() {
  const now = control();
  if (now && "guided" in now.dataset) return;
  unmark();
  if (now) now.dataset.guided = "";
}

// The card and as much as possible of what it is about, unless both are in sight.
function bring() {
  const inSight = function (node) {
    const box = node.getBoundingClientRect();
    return box.top >= 0 && box.bottom <= innerHeight;
  };
  if (!inSight(card) || !inSight(control() || card)) scroll(card, "start");
}

function enter(step, scrolls) {
  at = Math.max(0, Math.min(step, steps.length - 1));
  waiting = false;
  const last = at === steps.length - 1;
  steps.forEach(function (node, i) { node.classList.toggle("ms-guide-here", i === at); node.inert = i !== at; });
  button("back").disabled = at === 0;
  button("next").disabled = last;
  button("skip").textContent = last ? "Done" : "Skip the guide";
  remember(at);
  mark();
  if (scrolls) bring();
}

function opened(is) {
  card.hidden = !is;
  const header = document.getElementById("guide-open");
  if (header) header.setAttribute("aria-expanded", String(is));
}

function open(step, scrolls) {
  opened(true);
  enter(step, scrolls);
}

function close() {
  const header = document.getElementById("guide-open");
  const inside = card.contains(document.activeElement);
  opened(false);
  unmark();
  remember("closed");
  if (inside && header) header.focus();
}

function look() {
  if (card.hidden) return;
  mark();
  const done = steps[at].dataset.done;
  if (!done) return;
  if (!document.querySelector(done)) waiting = true;
  // What comes about without a hand (an analysis that somebody else had made) is not the person's step.
  else if (!touched) waiting = false;
  // A hand that is still at work must not have the page moved under it.
  else if (waiting) enter(at + 1, performance.now() - touched > IDLE);
}

on(document, "pointerdown", function () { touched = performance.now(); });
on(document, "keydown", function (event) {
  touched = performance.now();
  if (event.key === "Escape" && card.contains(event.target)) close();
});
on(document, "click", function (event) {
  if (!event.target.closest || !event.target.closest("#guide-open")) return;
  open(0, true);
  button("show").focus({ preventScroll: true });
});
on(button("back"), "click", function () { enter(at - 1, true); });
on(button("next"), "click", function () { enter(at + 1, true); });
on(button("skip"), "click", close);
on(button("show"), "click", function () {
  const now = control();
  if (!now) return;
  const usable = "button:not([disabled]):not([tabindex='-1']), input:not([disabled]), [tabindex='0']";
  const first = now.matches(usable) ? now : now.querySelector(usable);
  if (first) first.focus({ preventScroll: true });
  scroll(now, "center");
});
const clock = setInterval(look, LOOK);
element.guideStop = function () { clearInterval(clock); life.abort(); };

const before = remembered();
if (before === "closed") opened(false);
else open(Number(before) || 0, false);
