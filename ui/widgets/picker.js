// Runs at every mount with element, trigger, props, watch given by Gradio. Do not quote the name of the read-only prop
// here: gr.HTML takes every quoted word in this file for a custom event.
if (element.pickerStop) element.pickerStop();
const life = new AbortController();
const root = element.querySelector("[data-picker]");

function draw() {
  const held = root.contains(document.activeElement) ? document.activeElement.closest("[data-key]") : null;
  const key = held && held.dataset.key, kind = held && held.tagName;
  root.innerHTML = props.content || "";
  if (!key) return;
  for (const node of root.querySelectorAll("[data-key]")) {
    if (node.dataset.key === key && node.tagName === kind) { node.focus(); break; }
  }
}

function choose(event) {
  const node = event.target.closest("[data-key]");
  if (!node || !root.contains(node)) return;
  event.preventDefault();
  props.value = node.dataset.key;
  trigger("input");
}

root.addEventListener("click", choose, { signal: life.signal });
root.addEventListener("keydown", function (event) {
  // Buttons turn these keys into clicks by themselves; the points of a drawing do not.
  if ((event.key === "Enter" || event.key === " ") && event.target.tagName !== "BUTTON") choose(event);
}, { signal: life.signal });
element.pickerStop = function () { life.abort(); };
watch("value content".split(" "), draw);
draw();
