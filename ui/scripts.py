"""Scripts that run in the browser."""

from __future__ import annotations

# The browser's storage is shared by its tabs: what a tab itself has kept comes first, so that two tabs do not mix.
# The first change that Gradio reports is what it read from there itself, before the page has asked for its own.
RECALL = """(kept) => {
  let own = null;
  try { own = JSON.parse(sessionStorage.getItem('model-surgery')); } catch (error) {}
  window.modelSurgeryLoaded = true;
  const known = own || (kept ? {...kept, job: null} : null);
  const link = /[#?&]recipe=([\\w-]*)/.exec(location.search + location.hash);
  // Once: a reload must not undo what was done since.
  if (link) history.replaceState(null, '', location.pathname);
  return [link ? {...known, link: link[1]} : known];
}"""
REMEMBER = """(kept) => {
  if (!window.modelSurgeryLoaded) return;
  try { sessionStorage.setItem('model-surgery', JSON.stringify(kept)); } catch (error) {}
}"""
# The paragraph is never made anew, so that a screen reader says what changes in it.
SPEAK = """const told = element.querySelector('p');
const tell = () => { if (told.textContent !== (props.value || '')) told.textContent = props.value || ''; };
tell();
watch(Object.keys({value: 0}), tell);"""
# Ctrl+Z and Ctrl+Shift+Z (or the command key), but not while something is typed.
KEYS = """() => {
  if (window.modelSurgeryKeys) return;
  window.modelSurgeryKeys = true;
  document.addEventListener('keydown', (event) => {
    if (event.key.toLowerCase() !== 'z' || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    const moved = '[type=range], [type=checkbox], [type=radio]';
    const typing = event.target.closest(`textarea, [contenteditable], input:not(${moved})`);
    if (typing) return;
    event.preventDefault();
    document.querySelector(event.shiftKey ? '#redo' : '#undo')?.click();
  });
}"""
# The fragment of an address is not sent to a server, so it may be long.
SHOW_LINK = """(code) => {
  if (!code) return '';
  const link = location.origin + location.pathname + '#recipe=' + code;
  history.replaceState(null, '', link);
  navigator.clipboard?.writeText(link).catch(() => {});
  return link;
}"""


def download_js(name: str, kind: str) -> str:
    """Script of an event that saves the text it is given as a file of that name and media type."""
    return f"""(text) => {{
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {{type: '{kind}'}}));
  link.download = '{name}';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}}"""
