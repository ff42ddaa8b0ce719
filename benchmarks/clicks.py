"""How fast the page answers a click: to the redrawn map, and to the first perplexity. And whether fast clicks are lost.

    python -m benchmarks.clicks [--clicks 24] [--threads N] [--out F]

The embedded model, the real page served by this process, headless Chromium on the same machine. Both times are taken in
the browser (performance.now), from the click itself: until the first frame in which the map shows the tile as
removed, and until the perplexity tile shows a number of the new recipe, from its first window on. Every click makes a
recipe that was not measured before. Then twenty clicks are made as fast as the browser takes them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from surgery.workbench.workbench import Workbench
from ui.tabs import Sessions

MAP_GOAL_MS, NUMBER_GOAL_S = 200.0, 1.0
FAST = 20
BLOCKS = 30
"""Of the embedded model."""
TIMED_CLICK = """([block, part]) => new Promise((resolve) => {
  const tile = () => document.querySelector(`#map button[data-block="${block}"][data-part="${part}"]`);
  const result = {}, value = () => document.querySelector('[data-tile=perplexity] .ms-tile-value').textContent;
  const before = value(), begun = performance.now();
  const look = () => requestAnimationFrame(() => {
    const now = performance.now() - begun;
    if (result.map === undefined && tile()?.dataset.state === 'removed') result.map = now;
    const stale = document.querySelector('[data-tile=perplexity]').textContent.includes('out of date');
    if (result.number === undefined && value() !== before && !stale && value() !== '…') result.number = now / 1000;
    if (result.map === undefined || result.number === undefined) return;
    changes.disconnect();
    resolve(result);
  });
  // A loop over all frames would keep one of the two cores busy that measure the perplexity.
  const changes = new MutationObserver(look);
  changes.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
  const clicked = tile(), box = clicked.getBoundingClientRect();
  const at = {bubbles: true, cancelable: true, pointerId: 1, isPrimary: true, button: 0, buttons: 1,
              pointerType: 'mouse', clientX: box.left + 5, clientY: box.top + 8};
  clicked.dispatchEvent(new PointerEvent('pointerdown', at));
  clicked.dispatchEvent(new PointerEvent('pointerup', {...at, buttons: 0}));
  clicked.dispatchEvent(new MouseEvent('click', {...at, detail: 1}));
})"""


def timed_clicks(page: Any, count: int) -> list[dict[str, float]]:
    """Remove parts one after another; ms to the redrawn map and seconds to the first perplexity of each click."""
    from tests.interface.driving import wait_measured

    order = [(block, part) for part in ("attention", "mlp") for block in range(2, BLOCKS - 2)][:count]
    times = []
    for block, part in order:
        times.append(page.evaluate(TIMED_CLICK, [block, part]))
        wait_measured(page)
    return times


def fast_clicks(page: Any) -> int:
    """Twenty clicks as fast as they go; how many were lost once everything has settled."""
    from tests.interface.driving import part, removed, wait_measured

    page.click("#reset:not([disabled])")
    page.wait_for_selector("#reset[disabled]")
    for block in range(4, 4 + FAST):
        part(page, block, "attention").click()
    wait_measured(page, f"{FAST} attention parts removed")
    return FAST - len(removed(page))


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    from tests.interface.driving import opened
    from tests.interface.serving import chromium, served

    torch.set_num_threads(options.threads)
    bench = Workbench()
    with served(Sessions(bench)) as address, chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(300_000)
        page = opened(context, address)
        times = timed_clicks(page, options.clicks)
        lost = fast_clicks(page)
        context.close()
    bench.jobs.close()
    columns = {name: [time[name] for time in times] for name in ("map", "number")}
    return {
        "machine": measuring.machine(),
        "options": {"clicks": options.clicks, "threads": options.threads},
        "map_ms": {"median": measuring.median(columns["map"]), "worst": max(columns["map"]), "goal": MAP_GOAL_MS},
        "first_perplexity_s": {
            "median": measuring.median(columns["number"]), "worst": max(columns["number"]), "goal": NUMBER_GOAL_S,
        },
        "fast_clicks": {"made": FAST, "lost": lost},
        "clicks": times,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    measuring.table(
        [
            {"from the click to": words, **{key: float(value) for key, value in result[name].items()}}
            for name, words in (("map_ms", "the redrawn map (ms)"), ("first_perplexity_s", "the first perplexity (s)"))
        ],
        f"{result['options']['clicks']} clicks",
    )
    print(f"Of {result['fast_clicks']['made']} fast clicks {result['fast_clicks']['lost']} were lost.")


def main() -> int:
    """Run the command; 1 when a click was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clicks", description=__doc__.split("\n")[0])
    parser.add_argument("--clicks", type=int, default=24, choices=range(1, 53), metavar="1..52")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=None, help="JSON; benchmarks/results/clicks.json if absent")
    options = parser.parse_args()
    result = benchmark(options)
    show(result)
    measuring.write("clicks", result, options.out)
    return 1 if result["fast_clicks"]["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
