// Runs at every mount with element, trigger, props, watch given by Gradio. The template is static and never
// interpolates anything: all text goes in through textContent and setAttribute. Do not quote the name of the
// read-only prop here: gr.HTML takes every quoted word in this file for a custom event.
if (element.blockDetailStop) element.blockDetailStop();
const life = new AbortController();
const on = function (target, type, handler) { target.addEventListener(type, handler, { signal: life.signal }); };

const root = element.querySelector("[data-block-detail]");
const part = function (name) { return root.querySelector("[data-" + name + "]"); };
const groups = part("groups"), strip = part("strip"), chart = part("chart"), handle = part("handle");

let view = null;       // the checked copy of the read-only data
let drawn = "";        // which heads the DOM was built for
let buttons = [];      // what can be switched: KV groups, or query heads where they go alone
let current = 0;       // holder of the roving tabindex
let stroke = null;     // a drag of the boundary: the width it began with and the one it is at

// ---------------------------------------------------------------- data in

function whole(x) { return Number.isInteger(x) && x > 0 ? Math.min(x, 1 << 24) : 0; }
function list(x) { return Array.isArray(x) ? x : null; }
function text(x) { return typeof x === "string" ? x : ""; }

function look() {
  const m = props.model && typeof props.model === "object" ? props.model : {};
  const a = m.attention || {}, n = m.mlp || {};
  const kv = whole(a.kv), query = whole(a.query);
  return {
    block: Number.isInteger(m.block) ? m.block : null,
    kv: kv, query: query, size: kv ? query / kv : 0, single: a.single === true, headsAble: a.able === true, headsGone: a.gone === true,
    headsWhy: text(a.why), title: text(a.title), values: list(a.values), shades: list(a.shades),
    width: whole(n.width), hidden: whole(n.hidden), able: n.able === true, gone: n.gone === true, why: text(n.why),
    method: text(n.method), ranked: n.ranked === true, waiting: n.waiting === true, chosen: n.chosen !== false,
    heights: list(n.heights), scores: list(n.scores), cut: list(n.cut), kept: whole(n.kept), scale: text(n.scale),
  };
}

// The decision, with whatever is out of range left out.
function decision() {
  const raw = props.value && typeof props.value === "object" ? props.value : {};
  const set = function (items, count) {
    return new Set((list(items) || []).filter(function (i) { return Number.isInteger(i) && i >= 0 && i < count; }));
  };
  const width = raw.block === view.block && whole(raw.width) ? Math.min(view.width, raw.width) : view.width;
  return { groups: set(raw.groups, view.kv), heads: set(raw.heads, view.query), width: width };
}

// ---------------------------------------------------------------- data out

function send(d) {
  const sorted = function (s) { return Array.from(s).sort(function (a, b) { return a - b; }); };
  props.value = { block: view.block, groups: sorted(d.groups), heads: sorted(d.heads), width: d.width };
  paint();
  trigger("input");
}

function members(group) {
  const found = [];
  for (let i = 0; i < view.size; i++) found.push(group * view.size + i);
  return found;
}

// The last unit stays: an attention without heads is removed on the map.
function isLast(d, unit) {
  if (view.single) return !d.heads.has(unit) && view.query - d.heads.size === 1;
  return !d.groups.has(unit) && view.kv - d.groups.size === 1;
}

function toggle(unit) {
  const d = decision();
  if (!view.headsAble || isLast(d, unit)) return;
  if (view.single) {
    if (!d.heads.delete(unit)) d.heads.add(unit);
  } else if (d.groups.delete(unit)) {
    // It comes back with as many query heads as the groups that stayed, at the places where the first of them has its.
    for (let g = 0; g < view.kv; g++) {
      if (g === unit || d.groups.has(g)) continue;
      members(g).forEach(function (head, i) { if (d.heads.has(head)) d.heads.add(unit * view.size + i); });
      break;
    }
  } else {
    d.groups.add(unit);
    members(unit).forEach(function (head) { d.heads.delete(head); });
  }
  send(d);
}

// ---------------------------------------------------------------- drawing

function make(tag, name) {
  const node = document.createElement(tag);
  node.className = name;
  return node;
}

function put(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function say(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function shown(x) {
  const size = Math.abs(x);
  return size > 0 && (size < 0.0001 || size >= 100000) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}

function comma(x) { return x.toLocaleString("en-GB"); }

function unitButton(unit, name) {
  const b = make("button", name);
  b.type = "button";
  b.dataset.unit = String(unit);
  b.tabIndex = -1;
  buttons[unit] = b;
  return b;
}

function headBox(head, tag) {
  const box = tag || make("span", "bd-head");
  box.dataset.head = String(head);
  box.appendChild(make("span", "bm-fill"));
  const number = make("span", "bd-number");
  number.textContent = String(head);
  box.appendChild(number);
  return box;
}

function build() {
  const wanted = [view.kv, view.query, view.single].join(" ");
  if (wanted === drawn) return;
  drawn = wanted;
  groups.textContent = "";
  buttons = [];
  current = 0;
  for (let g = 0; g < view.kv; g++) {
    const box = view.single ? make("span", "bd-group") : unitButton(g, "bd-group");
    const row = make("span", "bd-heads");
    members(g).forEach(function (head) {
      row.appendChild(headBox(head, view.single ? unitButton(head, "bd-head") : null));
    });
    const kv = make("span", "bd-kv");
    kv.textContent = "KV " + g;
    box.appendChild(row);
    box.appendChild(kv);
    groups.appendChild(box);
  }
}

function valueOf(head) {
  const x = view.values && view.values[head];
  return typeof x === "number" ? shown(x) : "";
}

function headWords(d, unit) {
  const heads = view.single ? [unit] : members(unit);
  const off = view.single ? d.heads.has(unit) : d.groups.has(unit);
  const gone = heads.filter(function (head) { return d.heads.has(head); });
  const name = view.single ? "Query head " + unit
    : "KV group " + unit + ", query head" + (heads.length > 1 ? "s " : " ") + heads.join(", ");
  const bits = [view.headsGone ? "removed with its attention" : off ? "removed" : "kept"];
  if (!view.single && gone.length) bits.push("without query head" + (gone.length > 1 ? "s " : " ") + gone.join(", "));
  const values = heads.map(valueOf).filter(Boolean);
  if (values.length) bits.push(view.title + " " + values.join(", "));
  if (view.headsAble && isLast(d, unit)) bits.push("the last one stays: remove the attention on the map instead");
  return name + ": " + bits.join("; ");
}

function paintHeads(d) {
  part("attention").hidden = !view.query;
  groups.querySelectorAll("[data-head]").forEach(function (box) {
    const head = Number(box.dataset.head), shade = view.shades && view.shades[head];
    const gone = d.heads.has(head) || d.groups.has(Math.floor(head / view.size)) || view.headsGone;
    put(box, "data-state", gone ? "removed" : "kept");
    put(box, "data-known", String(typeof shade === "number"));
    box.firstChild.style.setProperty("--t", typeof shade === "number" ? String(shade) : "0");
  });
  buttons.forEach(function (b, unit) {
    const off = view.single ? d.heads.has(unit) : d.groups.has(unit), words = headWords(d, unit);
    put(b, "aria-pressed", String(off));
    put(b, "aria-label", words);
    put(b, "title", words);
    put(b, "data-state", off || view.headsGone ? "removed" : "kept");
    if (view.headsAble && !isLast(d, unit)) b.removeAttribute("aria-disabled"); else put(b, "aria-disabled", "true");
    b.tabIndex = unit === current ? 0 : -1;
  });
  put(groups, "aria-label", (view.single ? "Query heads" : "KV groups") + " of block " + view.block);
  const known = (view.values || []).filter(function (x) { return typeof x === "number"; });
  part("scale").hidden = !known.length;
  if (known.length) {
    say(part("low"), view.title + " " + shown(Math.min.apply(null, known)));
    say(part("high"), shown(Math.max.apply(null, known)));
  }
  part("all-heads").hidden = !view.headsAble || !(d.groups.size + d.heads.size);
  const colours = known.length || !view.query ? "" : " Colours need an analysis: press Analyse.";
  say(part("heads-note"), view.headsWhy + colours);
}

// Two outlines of the columns, what stays and what goes: a column that is cut in part is shared between them.
function paintChart(width) {
  const wide = chart.clientWidth, high = chart.clientHeight;
  if (!wide || !view.width) return;
  const count = view.ranked && view.heights ? view.heights.length : 1;
  const moved = width !== view.kept;   // what is cut is known neuron by neuron only where the data were made
  let kept = "", cut = "";
  for (let i = 0; i < count; i++) {
    const from = Math.floor(i * view.width / count), to = Math.floor((i + 1) * view.width / count);
    const byRank = 1 - Math.min(1, Math.max(0, (width - from) / (to - from)));
    const share = view.ranked && !moved && !view.waiting && view.cut ? view.cut[i] : byRank;
    const height = view.ranked && view.heights ? view.heights[i] * (high - 4) : high * 0.45;
    const left = wide * from / view.width, right = wide * to / view.width, middle = right - (right - left) * share;
    const box = function (a, b) {
      return "M" + a.toFixed(2) + " " + high + "V" + (high - height).toFixed(1) + "H" + b.toFixed(2) + "V" + high + "Z";
    };
    if (middle > left) kept += box(left, middle);
    if (right > middle) cut += box(middle, right);
  }
  put(part("kept"), "d", kept);
  put(part("cut"), "d", cut);
  handle.style.left = (100 * width / view.width).toFixed(3) + "%";
}

function widthWords(width) {
  const gone = view.width - width;
  const ratio = view.hidden ? ", expansion ratio " + (100 * width / view.hidden).toFixed(1) + "%" : "";
  return (gone ? comma(width) + " of " + comma(view.width) + " kept" + ratio + "; " + comma(gone) + " go ("
    + (100 * gone / view.width).toFixed(1) + "%)" : "all " + comma(view.width) + " kept" + ratio)
    + (view.waiting ? "; applied when the analysis ends" : "");
}

function paintNeurons(d) {
  const width = view.gone ? 0 : stroke ? stroke.width : d.width;
  part("mlp").hidden = !view.width;
  if (!view.width) return;
  const words = view.gone ? "removed" : widthWords(width);
  say(part("kept-words"), words);
  put(strip, "aria-label", "Neurons of block " + view.block + " that are kept");
  put(strip, "aria-valuemin", "1");
  put(strip, "aria-valuemax", String(view.width));
  put(strip, "aria-valuenow", String(width));
  put(strip, "aria-valuetext", words);
  put(strip, "aria-disabled", String(!view.able));
  put(strip, "data-ranked", String(view.ranked));
  part("full-width").hidden = !view.able || width === view.width;
  say(part("method"), view.ranked ? view.method + ", " + view.scale : "");
  const notes = [];
  if (view.why) notes.push(view.why);
  else if (!view.ranked) notes.push("Not ranked by " + view.method + " yet: press Analyse, or move the boundary and the analysis starts.");
  else notes.push("Drag the boundary, or use the arrow keys (Shift for one neuron), Page up and down, Home and End.");
  if (view.ranked && !view.chosen && !stroke) notes.push("What is cut now was not chosen by this method: moving the boundary chooses anew.");
  say(part("neurons-note"), notes.join(" "));
  paintChart(width);
}

function paint() {
  const d = decision();
  paintHeads(d);
  paintNeurons(d);
}

function redraw() {
  const before = view && view.block;
  view = look();
  if (stroke && before !== view.block) finish(false);
  root.hidden = view.block === null;
  if (root.hidden) return;
  put(root, "data-block", String(view.block));
  put(root, "data-analysed", String(!!view.shades));
  build();
  paint();
}

// ---------------------------------------------------------------- heads

function unitOf(node) {
  const b = node && node.closest ? node.closest("button[data-unit]") : null;
  return b && groups.contains(b) ? Number(b.dataset.unit) : -1;
}

function hold(unit) {
  if (buttons[current]) buttons[current].tabIndex = -1;
  current = unit;
  buttons[unit].tabIndex = 0;
}

on(groups, "click", function (event) {
  const unit = unitOf(event.target);
  if (unit < 0) return;
  hold(unit);
  toggle(unit);
});
on(groups, "focusin", function (event) {
  const unit = unitOf(event.target);
  if (unit >= 0) hold(unit);
});
on(groups, "keydown", function (event) {
  const unit = unitOf(event.target);
  if (unit < 0 || event.altKey || event.metaKey || event.ctrlKey) return;
  if (event.key === "Enter" || event.key === " ") {
    if (event.repeat) event.preventDefault();   // a held key toggles once
    return;
  }
  const last = buttons.length - 1;
  const next = { ArrowRight: unit + 1, ArrowDown: unit + 1, ArrowLeft: unit - 1, ArrowUp: unit - 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  hold(Math.max(0, Math.min(last, next)));
  buttons[current].focus();
});
on(part("all-heads"), "click", function () {
  const d = decision();
  d.groups.clear();
  d.heads.clear();
  send(d);
  if (buttons[current]) buttons[current].focus({ preventScroll: true });
});

// ---------------------------------------------------------------- neurons

function setWidth(width) {
  const d = decision(), next = Math.max(1, Math.min(view.width, width));
  if (!view.able || next === d.width) return;
  d.width = next;
  send(d);
}

function widthAt(event) {
  const box = strip.getBoundingClientRect();
  return Math.max(1, Math.min(view.width, Math.round(view.width * (event.clientX - box.left) / box.width)));
}

function finish(keep) {
  if (!stroke) return;
  const width = stroke.width;
  stroke.stop.abort();
  stroke = null;
  if (keep) setWidth(width);
  paint();
}

on(strip, "pointerdown", function (event) {
  if (!view.able || event.button !== 0 || event.ctrlKey) return;
  finish(false);
  stroke = { id: event.pointerId, width: widthAt(event), stop: new AbortController() };
  const here = { signal: stroke.stop.signal };
  const mine = function (handler) { return function (e) { if (stroke && e.pointerId === stroke.id) handler(e); }; };
  window.addEventListener("pointermove", mine(function (e) { stroke.width = widthAt(e); paintNeurons(decision()); }), here);
  window.addEventListener("pointerup", mine(function () { finish(true); }), here);
  window.addEventListener("pointercancel", mine(function () { finish(false); }), here);   // a touch that scrolls the page
  paintNeurons(decision());
});

on(strip, "keydown", function (event) {
  if (event.altKey || event.metaKey || event.ctrlKey) return;
  if (event.key === "Escape" && stroke) { finish(false); return; }
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(view.width / 128)), width = decision().width;
  const next = {
    ArrowLeft: width - step, ArrowDown: width - step, ArrowRight: width + step, ArrowUp: width + step,
    PageDown: width - 10 * step, PageUp: width + 10 * step, Home: 1, End: view.width,
  }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  setWidth(next);
});
on(part("full-width"), "click", function () { setWidth(view.width); strip.focus({ preventScroll: true }); });

// ---------------------------------------------------------------- life

const observer = new ResizeObserver(function () { if (root.isConnected && view && view.block !== null) paintNeurons(decision()); });
observer.observe(root);
element.blockDetailStop = function () { observer.disconnect(); if (stroke) stroke.stop.abort(); life.abort(); };
watch("value model".split(" "), redraw);
redraw();
