// Runs at every mount with element, trigger, props, watch given by Gradio. The template is static and never
// interpolates anything: all text goes in through textContent and setAttribute. Do not quote the name of the
// read-only prop here: gr.HTML takes every quoted word in this file for a custom event.
const PARTS = ["head", "attention", "mlp"];
const MIN_TILE = 28, MAX_TILE = 46, GAP = 3, LABEL = 62, LABEL_NARROW = 31, NARROW = 560;
const HINT = "Click a tile to remove that part or bring it back, a number for the whole block; drag to paint.";

if (element.blockMapStop) element.blockMapStop();
const life = new AbortController();
const on = function (target, type, handler) { target.addEventListener(type, handler, { signal: life.signal }); };

const root = element.querySelector("[data-block-map]");
const grid = root.querySelector("[data-grid]");
const readout = root.querySelector("[data-readout]");
const summary = root.querySelector("[data-summary]");

let cells = [];        // cells[block] = {head, attention, mlp} buttons
let drawn = "";        // what the DOM was built for: blocks and columns per line
let perLine = 1;
let current = { block: 0, part: "attention" };   // holder of the roving tabindex
let view = null;       // the checked copy of the read-only data
let stroke = null;     // a drag in progress
let fromMouse = false; // the coming click was already handled at pointerdown

// ---------------------------------------------------------------- data in

function numbers(list, count) {
  const out = [];
  for (let i = 0; i < count; i++) {
    const x = Array.isArray(list) ? list[i] : null;
    out.push(typeof x === "number" && isFinite(x) ? x : null);
  }
  return out;
}

function share(list, count) {
  return numbers(list, count).map(function (x) { return x === null ? 1 : Math.min(1, Math.max(0, x)); });
}

function flags(list, count) {
  const out = [];
  for (let i = 0; i < count; i++) out.push(!(Array.isArray(list) && list[i] === false));
  return out;
}

// Position on the colour scale: logarithmic between the 5th and the 95th percentile, so that neither one huge
// nor one tiny value flattens the rest. What is not positive sits at the low end.
function scale(values) {
  const logs = values.filter(function (x) { return x !== null && x > 0; }).map(Math.log).sort(function (a, b) { return a - b; });
  const quantile = function (q) {
    const at = q * (logs.length - 1), low = Math.floor(at), high = Math.ceil(at);
    return logs[low] + (logs[high] - logs[low]) * (at - low);
  };
  if (!logs.length) return function () { return 0; };
  const lo = quantile(0.05), hi = quantile(0.95);
  return function (x) {
    if (!(x > 0)) return 0;
    return hi - lo < 1e-9 ? 0.5 : Math.min(1, Math.max(0, (Math.log(x) - lo) / (hi - lo)));
  };
}

function look() {
  const m = props.model && typeof props.model === "object" ? props.model : {};
  const count = Number.isInteger(m.blocks) && m.blocks > 0 ? Math.min(m.blocks, 2000) : 0;
  const measure = typeof m.measure === "string" && m.measure ? m.measure : "influence";
  const analysed = m.analysed !== false || measure !== "influence";
  const read = function (list) { return analysed ? numbers(list, count) : numbers(null, count); };
  const going = m.going && typeof m.going === "object" ? m.going : {};
  const some = function (list) { return new Set(Array.isArray(list) ? list : []); };
  const v = {
    count: count,
    measure: measure,
    locked: some(m.locked),
    going: { head: some(going.blocks), attention: some(going.attention), mlp: some(going.mlp) },
    narrower: { head: some(null), attention: some(going.narrower_attention), mlp: some(going.narrower_mlp) },
    groups: Array.isArray(m.groups) ? m.groups : [],
    influence: { head: read(m.block), attention: read(m.attention), mlp: read(m.mlp) },
    share: { head: share(null, count), attention: share(m.heads, count), mlp: share(m.width, count) },
    editable: { head: flags(null, count), attention: flags(m.editable_attention, count), mlp: flags(m.editable_mlp, count) },
  };
  const parts = scale(v.influence.attention.concat(v.influence.mlp));
  v.colour = { head: scale(v.influence.head), attention: parts, mlp: parts };
  v.known = v.influence.attention.concat(v.influence.mlp, v.influence.head).some(function (x) { return x !== null; });
  return v;
}

// The decisions as sets; whatever is not an index of a block is left out.
function decisions() {
  const raw = props.value && typeof props.value === "object" ? props.value : {};
  const set = function (list) {
    return new Set((Array.isArray(list) ? list : []).filter(function (i) {
      return Number.isInteger(i) && i >= 0 && i < view.count;
    }));
  };
  const d = { head: set(raw.blocks), attention: set(raw.attention), mlp: set(raw.mlp) };
  d.head.forEach(function (i) { d.attention.delete(i); d.mlp.delete(i); });
  return d;
}

function removed(d, block, part) {
  return d.head.has(block) || (part !== "head" && d[part].has(block));
}

// ---------------------------------------------------------------- data out

// Switches one part (or the whole block) off or on; says whether anything changed.
function set(block, part, off) {
  const d = decisions();
  if (removed(d, block, part) === off || !view.editable[part][block]) return false;
  if (part === "head") {
    if (off) { d.head.add(block); d.attention.delete(block); d.mlp.delete(block); }
    else d.head.delete(block);
  } else if (off) {
    d[part].add(block);
  } else if (d.head.has(block)) {
    // One part comes back, the other one stays out (where it can be removed alone).
    const other = part === "attention" ? "mlp" : "attention";
    d.head.delete(block);
    if (view.editable[other][block]) d[other].add(block);
  } else {
    d[part].delete(block);
  }
  const list = function (s) { return Array.from(s).sort(function (a, b) { return a - b; }); };
  props.value = { blocks: list(d.head), attention: list(d.attention), mlp: list(d.mlp) };
  paint();
  return true;
}

function toggle(block, part) {
  if (set(block, part, !removed(decisions(), block, part))) trigger("input");
}

// ---------------------------------------------------------------- drawing

function make(tag, name, role) {
  const node = document.createElement(tag);
  node.className = name;
  if (role) node.setAttribute("role", role);
  return node;
}

function button(block, part) {
  const b = make("button", part === "head" ? "bm-head" : "bm-tile");
  b.type = "button";
  b.dataset.block = String(block);
  b.dataset.part = part === "head" ? "block" : part;
  b.tabIndex = -1;
  const fill = make("span", "bm-fill");
  b.appendChild(fill);
  if (part === "head") {
    const number = make("span", "bm-number");
    number.textContent = String(block);
    b.appendChild(number);
  }
  return b;
}

function layout() {
  const width = root.clientWidth;
  if (!width) return;   // in a closed tab: the observer calls again
  const narrow = width < NARROW;
  const fit = Math.max(1, Math.floor((width - (narrow ? LABEL_NARROW : LABEL)) / (MIN_TILE + GAP)));
  const lines = Math.max(1, Math.ceil(view.count / fit));
  perLine = Math.max(1, Math.ceil(view.count / lines));
  const wanted = [view.count, perLine, narrow].join(" ");
  if (wanted === drawn) return;
  drawn = wanted;
  const focused = grid.contains(document.activeElement);
  root.classList.toggle("bm-narrow", narrow);
  grid.textContent = "";
  grid.style.setProperty("--bm-per", String(perLine));
  grid.setAttribute("aria-colcount", String(view.count + 1));
  cells = [];
  for (let i = 0; i < view.count; i++) cells.push({});
  const names = { head: "Block", attention: narrow ? "Attn" : "Attention", mlp: "MLP" };
  for (let start = 0; start < view.count; start += perLine) {
    const line = make("div", "bm-line", "rowgroup");
    PARTS.forEach(function (part) {
      const row = make("div", "bm-row", "row");
      const name = make("div", "bm-name", "rowheader");
      name.textContent = names[part];
      row.appendChild(name);
      for (let i = start; i < Math.min(view.count, start + perLine); i++) {
        const cell = make("div", "bm-cell", part === "head" ? "columnheader" : "gridcell");
        cell.setAttribute("aria-colindex", String(i + 2));
        cells[i][part] = button(i, part);
        cell.appendChild(cells[i][part]);
        row.appendChild(cell);
      }
      line.appendChild(row);
    });
    grid.appendChild(line);
  }
  current.block = Math.max(0, Math.min(current.block, view.count - 1));
  paint();
  if (focused && view.count) cells[current.block][current.part].focus({ preventScroll: true });
}

function shown(x) {
  const size = Math.abs(x);
  return size > 0 && (size < 0.0001 || size >= 100000) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}

// Whether a suggestion would take the part: "removed", "narrower" or "".
function wouldBe(block, part) {
  if (view.going.head.has(block) || (part !== "head" && view.going[part].has(block))) return "removed";
  return view.narrower[part].has(block) ? "narrower" : "";
}

// The kept KV groups of an attention as columns; nothing where all stay or there is no room for them.
function columns(block) {
  const groups = view.groups[block];
  if (!Array.isArray(groups) || !groups.some(function (kept) { return !kept; })) return "";
  const step = 100 / groups.length;
  const stops = groups.map(function (kept, i) {
    return (kept ? "#000 " : "transparent ") + (i * step + 2) + "% " + ((i + 1) * step - 2) + "%";
  });
  return "linear-gradient(to right, " + stops.join(", ") + ")";
}

function words(d, block, part) {
  const x = view.influence[part][block], would = wouldBe(block, part);
  const bits = [x === null ? view.measure + " not measured" : view.measure + " " + shown(x)];
  if (view.locked.has(block)) bits.push("locked");
  if (would) bits.push("a suggestion would " + (would === "removed" ? "remove it" : "narrow it"));
  const off = removed(d, block, part);
  if (part === "head") {
    const a = d.attention.has(block), m = d.mlp.has(block);
    if (off) bits.push("removed");
    else if (a && m) bits.push("attention and MLP removed one by one");
    else bits.push(a ? "kept without attention" : m ? "kept without MLP" : "kept");
    return "Block " + block + ": " + bits.join(", ");
  }
  bits.push(d.head.has(block) ? "removed with its block" : off ? "removed" : "kept");
  const kept = view.share[part][block];
  if (!off && kept < 1) bits.push(Math.round(kept * 100) + "% of its " + (part === "mlp" ? "width" : "KV groups"));
  if (!view.editable[part][block]) bits.push("cannot be removed alone");
  return "Block " + block + " " + (part === "mlp" ? "MLP" : "attention") + ": " + bits.join(", ");
}

function say(selector, text) {
  const node = root.querySelector(selector);
  if (node.textContent !== text) node.textContent = text;
}

function put(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function paint() {
  const d = decisions();
  const any = function (one, two, test) { return one.some(test) || two.some(test); };
  put(root, "data-analysed", String(view.known));
  put(root, "data-locked", String(view.locked.size > 0));
  put(root, "data-going", String(PARTS.some(function (part) { return view.going[part].size + view.narrower[part].size > 0; })));
  say("[data-low]", "less " + view.measure);
  say("[data-high]", "more " + view.measure);
  say("[data-unknown]", view.measure + " not measured yet");
  put(root, "data-partial", String(any(view.share.attention, view.share.mlp, function (x) { return x < 1; })));
  put(root, "data-fixed", String(any(view.editable.attention, view.editable.mlp, function (x) { return !x; })));
  // While hidden (a closed tab) the tiles may still be those of an older model: layout() comes later.
  for (let i = 0; i < (cells.length === view.count ? view.count : 0); i++) {
    PARTS.forEach(function (part) {
      const b = cells[i][part], off = removed(d, i, part), text = words(d, i, part);
      const x = view.influence[part][i], kept = view.share[part][i];
      put(b, "aria-pressed", String(off));
      put(b, "aria-label", text);
      put(b, "title", text);
      put(b, "data-state", off ? "removed" : "kept");
      put(b, "data-known", String(x !== null));
      const groups = part === "attention" ? columns(i) : "";
      put(b, "data-narrowed", String(kept < 1 && !groups));
      put(b, "data-going", off ? "" : wouldBe(i, part));
      put(b, "data-locked", String(part === "head" && view.locked.has(i)));
      if (view.editable[part][i]) b.removeAttribute("aria-disabled"); else put(b, "aria-disabled", "true");
      b.tabIndex = i === current.block && part === current.part ? 0 : -1;
      const fill = b.firstChild;
      fill.style.setProperty("--t", x === null ? "0" : view.colour[part](x).toFixed(3));
      if (fill.style.maskImage !== groups) fill.style.maskImage = groups;
      fill.style.setProperty("--share", groups ? "1" : kept.toFixed(3));
    });
  }
  const count = function (n, one, many) { return n + " " + (n === 1 ? one : many); };
  const said = [];
  if (d.head.size) said.push(count(d.head.size, "block", "blocks"));
  if (d.attention.size) said.push(count(d.attention.size, "attention part", "attention parts"));
  if (d.mlp.size) said.push(count(d.mlp.size, "MLP", "MLPs"));
  const text = !view.count ? "No model" : said.length ? "Removed: " + said.join(", ") : "Nothing removed";
  if (summary.textContent !== text) summary.textContent = text;
  tell();
}

// The line under the map: the part under the pointer or with the focus, else how the map is used.
let under = null;
function tell() {
  const node = under && grid.contains(under) ? under : grid.contains(document.activeElement) ? document.activeElement : null;
  const text = node && node.getAttribute("aria-label") || (view.count ? HINT : "");
  if (readout.textContent !== text) readout.textContent = text;
  put(readout, "data-live", String(!!node));
}

function redraw() {
  view = look();
  layout();
  paint();
}

// ---------------------------------------------------------------- pointer

function hit(node) {
  const b = node && node.closest ? node.closest("button[data-part]") : null;
  if (!b || !grid.contains(b)) return null;
  return { node: b, block: Number(b.dataset.block), part: b.dataset.part === "block" ? "head" : b.dataset.part };
}

function hold(at, focus) {
  const before = cells[current.block] && cells[current.block][current.part];
  if (before) before.tabIndex = -1;
  current = { block: at.block, part: at.part };
  const b = cells[at.block][at.part];
  b.tabIndex = 0;
  if (focus) b.focus({ preventScroll: focus === "quiet" });
}

function finish() {
  if (!stroke) return;
  const changed = stroke.changed;
  stroke.stop.abort();
  stroke = null;
  if (changed) trigger("input");
}

function cross(x, y) {
  const at = hit(document.elementFromPoint(x, y));
  // A stroke that began on a number paints whole blocks, one that began on a tile paints tiles.
  if (!at || (at.part === "head") !== (stroke.part === "head")) return;
  under = at.node;
  if (set(at.block, at.part, stroke.off)) stroke.changed = true;
}

function move(event) {
  if (!stroke || event.pointerId !== stroke.id) return;
  if (!(event.buttons & 1)) { finish(); return; }
  // Walk along the way since the last event: a fast pointer jumps over tiles.
  const dx = event.clientX - stroke.x, dy = event.clientY - stroke.y;
  const steps = Math.max(1, Math.ceil(Math.hypot(dx, dy) / 8));
  for (let i = 1; i <= steps; i++) cross(stroke.x + dx * i / steps, stroke.y + dy * i / steps);
  stroke.x = event.clientX;
  stroke.y = event.clientY;
}

on(grid, "pointerdown", function (event) {
  fromMouse = false;
  const at = hit(event.target);
  if (!at || event.pointerType !== "mouse" || event.button !== 0 || event.ctrlKey) return;
  finish();
  fromMouse = true;
  hold(at, "quiet");
  stroke = {
    id: event.pointerId, x: event.clientX, y: event.clientY, part: at.part, changed: false,
    off: !removed(decisions(), at.block, at.part), stop: new AbortController(),
  };
  const here = { signal: stroke.stop.signal };
  window.addEventListener("pointermove", move, here);
  window.addEventListener("pointerup", finish, here);
  window.addEventListener("pointercancel", finish, here);
  window.addEventListener("blur", finish, here);
  if (set(at.block, at.part, stroke.off)) stroke.changed = true;
});

// Touch, pen, keyboard and assistive technology arrive here; scrolling by touch stays the browser's.
on(grid, "click", function (event) {
  const at = hit(event.target);
  if (!at || (fromMouse && event.detail > 0)) return;
  hold(at, "quiet");
  toggle(at.block, at.part);
});

on(grid, "pointerover", function (event) {
  const at = hit(event.target);
  under = at && event.pointerType === "mouse" ? at.node : null;
  tell();
});
on(grid, "pointerleave", function () { under = null; tell(); });
on(grid, "focusin", function (event) {
  const at = hit(event.target);
  if (at && (at.block !== current.block || at.part !== current.part)) hold(at, false);
  tell();
});
on(grid, "focusout", function () { queueMicrotask(tell); });

// ---------------------------------------------------------------- keyboard

on(grid, "keydown", function (event) {
  const at = hit(event.target);
  if (!at || event.altKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") {
    if (event.repeat) event.preventDefault();   // a held key toggles once
    return;
  }
  const last = view.count - 1;
  let block = at.block, row = PARTS.indexOf(at.part);
  switch (event.key) {
    case "ArrowRight": block = Math.min(last, block + 1); break;
    case "ArrowLeft": block = Math.max(0, block - 1); break;
    case "ArrowDown":
      if (row < 2) row += 1;
      else if (block + perLine <= last) { block += perLine; row = 0; }
      break;
    case "ArrowUp":
      if (row > 0) row -= 1;
      else if (block - perLine >= 0) { block -= perLine; row = 2; }
      break;
    case "Home": block = 0; if (event.ctrlKey) row = 0; break;
    case "End": block = last; if (event.ctrlKey) row = 2; break;
    default: return;
  }
  event.preventDefault();
  under = null;
  hold({ block: block, part: PARTS[row] }, true);
});

// ---------------------------------------------------------------- life

const observer = new ResizeObserver(function () { if (root.isConnected) layout(); });
observer.observe(root);
element.blockMapStop = function () { observer.disconnect(); if (stroke) stroke.stop.abort(); life.abort(); };
watch("value model".split(" "), redraw);
redraw();
