"""What the Heal panel says."""

from __future__ import annotations

from surgery.session.heal import NOTHING_CUT, cuts_of
from surgery.session.view import View
from ui.presenters.text import Html, download_text, notes

METHODS = [("LoRA (cross-entropy)", "lora"), ("Distillation (the dense model's predictions)", "distill")]
TEXTS = [("Embedded calibration text", "embedded"), ("Pasted text", "pasted"), ("Uploaded file", "file")]
PRESETS = [("Two minutes", "two-minutes"), ("Ten minutes", "ten-minutes"), ("An hour", "an-hour")]


def cut(view: View) -> bool:
    """Whether the recipe in force has something to heal."""
    return view.history is not None and bool(cuts_of(view.history.current))


def packable(view: View) -> bool:
    """Whether the recipe in force is healed and its adapter has no file yet."""
    return view.structure is not None and view.structure.healing is not None and view.heal.adapter is None


def download(view: View) -> tuple[str | None, str]:
    """The adapter's file and what its button says."""
    if view.heal.adapter is None:
        return None, ""
    return str(view.heal.adapter.path), download_text(view.heal.adapter.path, view.heal.adapter.bytes)


def time_left(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def words(view: View) -> Html:
    """The forecast, how the training goes, and how it ended."""
    lines = []
    if not cut(view):
        lines.append(NOTHING_CUT)
    elif view.heal.forecast is None and view.heal.progress is None:
        lines.append("A short training that makes up for the cuts. Ask first what a preset will do on this machine.")
    if view.heal.forecast is not None:
        lines.append(view.heal.forecast.words)
    progress, healed = view.heal.progress, view.heal.outcome
    if healed is not None:
        lines.append(
            f"Healed in {healed.steps:,} steps: held-out perplexity {healed.before:.2f} \N{RIGHTWARDS ARROW} "
            f"{healed.after:.2f} (best at step {healed.best_step:,})."
        )
    elif progress is not None:
        lines.append(
            f"Step {progress.step:,} of {progress.steps:,}: loss {progress.loss:.3f}, held-out perplexity "
            f"{progress.before:.2f} \N{RIGHTWARDS ARROW} {progress.held_out:.2f}, "
            f"{progress.tokens_per_second:,.0f} tokens a second, {time_left(progress.seconds_left)} left, "
            f"{progress.memory_bytes / 2**30:.1f} GiB of memory."
        )
    if view.heal.adapter is not None:
        lines.append("peft loads the adapter onto the checkpoint of the same cuts without the healing.")
    return notes(lines)
