"""Verification of a shipped folder: its sums hold, and the files read back give what was measured before they were
written. Nothing from the folder is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from analysis.text import Text, fingerprint_of, load_text, make_windows
from surgery.common.progress import Report, part_of, raise_if_set, silent
from surgery.errors import CorruptFile, InputError, VerificationFailed
from surgery.evaluation.estimate import perplexity_of
from surgery.recipe.texts import TextChoice
from surgery.shipping.checksums import Checked, check_sums
from surgery.shipping.read_back import ReadBack, read_back
from surgery.shipping.record import Kind, Part, Sample, ShipRecord
from surgery.shipping.spelling import spelling_of

LOGITS_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of a logit that is still rounding, as a share of the largest logit, by the coarser number type."""
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""The same for the mean loss, in nats per token: 1e-4 is a ten-thousandth of the perplexity."""
ROWS = 128
"""Positions whose losses are computed together."""


@dataclass(frozen=True)
class Difference:
    """How far one form, read back, is from what was recorded."""

    kind: Kind
    logits_max_absolute: float
    logits_max_relative: float
    """The same as a share of the largest recorded logit."""
    logits_tolerance: float
    """For the relative difference."""
    nll: float
    recorded_nll: float
    nll_tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it is rounding. Numbers that are not finite never are."""
        near = abs(self.nll - self.recorded_nll) <= self.nll_tolerance
        return near and self.logits_max_relative <= self.logits_tolerance

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "logits_max_absolute": self.logits_max_absolute,
            "logits_max_relative": self.logits_max_relative,
            "logits_tolerance": self.logits_tolerance,
            "perplexity": perplexity_of(self.nll),
            "perplexity_recorded": perplexity_of(self.recorded_nll),
            "nll_difference": self.nll - self.recorded_nll,
            "nll_tolerance": self.nll_tolerance,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Verification:
    """What was found in a shipped folder."""

    path: Path
    sums: Checked
    record: ShipRecord | None = None
    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything is as it was shipped."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """What `verify` prints."""
        return {
            "path": str(self.path),
            "holds": self.holds,
            "problems": list(self.problems),
            "files": sorted(self.sums.sha256),
            "sha256": self.sums.sha256,
            "changed": list(self.sums.changed),
            "missing": list(self.sums.missing),
            "unlisted": list(self.sums.unlisted),
            "recipe": self.record.recipe if self.record else None,
            "perplexity": perplexity_of(self.differences[-1].nll) if self.differences else None,
            "dense_perplexity": self.record.protocol.dense_perplexity if self.record and self.record.protocol else None,
            "differences": {difference.kind: difference.document() for difference in self.differences},
        }


def verify(
    folder: Path, text: TextChoice | None = None, report: Report = silent, stop: Event | None = None
) -> Verification:
    """Check a shipped folder: first the sums, then what its files give when they are read back.

    Args:
        folder: that `ship` made.
        text: the text that perplexity was measured on, where its tokens are not in the folder.

    Raises:
        VerificationFailed: something is not as it was shipped; the message names the files or the numbers.
        InputError: it is not such a folder, the text is not the recorded one, or there is no memory for the model.
        Cancelled: stopped.
    """
    sums = check_sums(folder, lambda share, words: report(0.2 * share, words), stop)
    if not sums.holds:
        raise _failed(Verification(folder, sums, problems=_sum_problems(sums)))
    record, sample = ShipRecord.load(folder), Sample.load(folder)
    if any(part.kind not in sample.logits for part in record.parts):
        raise CorruptFile(f"The sample of {folder.name} lacks logits: take the folder from its origin again.")
    differences: list[Difference] = []
    problems: list[str] = []
    for number, part in enumerate(record.parts):
        inside = part_of(report, 0.2 + 0.8 * number / len(record.parts), 0.2 + 0.8 * (number + 1) / len(record.parts))
        found = _read_back(folder, part, part_of(inside, 0.0, 0.4))
        if number == 0 and _splits_otherwise(found.tokenizer, record, sample):
            problems.append("the tokenizer splits the sample text otherwise than the source model's")
        elif record.tokenizer is not None and spelling_of(found.tokenizer) != record.tokenizer:
            problems.append("the tokenizer is not the one that was shipped: it spells otherwise")
        ids = _window_ids(found.tokenizer, record, sample, text)
        inside(0.4, f"Measuring the {part.kind} that was read back")
        difference = _difference(found, part, sample, ids, record, stop)
        differences.append(difference)
        if not difference.holds:
            problems.append(_difference_problem(part, difference))
        del found  # before the next one is loaded
    done = Verification(folder, sums, record, tuple(differences), tuple(problems))
    if not done.holds:
        raise _failed(done)
    report(1.0, "Verified")
    return done


def _sum_problems(sums: Checked) -> tuple[str, ...]:
    changed = (f"{name} has changed (its SHA-256 is not the recorded one)" for name in sums.changed)
    return (*changed, *(f"{name} is missing" for name in sums.missing))


def _difference_problem(part: Part, difference: Difference) -> str:
    return (
        f"{part.files[0]} gives a perplexity of {perplexity_of(difference.nll):.4f} where "
        f"{perplexity_of(difference.recorded_nll):.4f} was recorded, and logits that differ by "
        f"{difference.logits_max_relative:.2g} of the largest (tolerance {difference.logits_tolerance:g})"
    )


def _failed(found: Verification) -> VerificationFailed:
    more = f" (and {len(found.problems) - 3} more)" if len(found.problems) > 3 else ""
    return VerificationFailed(
        f"{found.path.name or found.path} is not what was shipped: {'; '.join(found.problems[:3])}{more}. "
        "Take it from its origin again, or ship it again.",
        found,
    )


def _read_back(folder: Path, part: Part, report: Report) -> ReadBack:
    """The shipped form as a model in memory; damage that the sums do not show is a failed verification."""
    try:
        return read_back(folder, part, report)
    except CorruptFile as error:
        raise VerificationFailed(f"{part.files[0]} of {folder.name} cannot be read back: {error}") from None


def _splits_otherwise(tokenizer: Any, record: ShipRecord, sample: Sample) -> bool:
    text = load_text("embedded")
    if text.fingerprint != record.sample_text:  # of another version of this tool: nothing to compare
        return False
    count, length = sample.ids.shape
    return not torch.equal(make_windows(tokenizer, text, length, count).ids, sample.ids)


def _window_ids(tokenizer: Any, record: ShipRecord, sample: Sample, text: TextChoice | None) -> torch.Tensor:
    """The windows that were measured: those in the folder, or cut again from the text that is given."""
    protocol = record.protocol
    assert protocol is not None  # a loaded record has one
    if sample.windows is not None:
        ids = sample.windows.to(torch.long)
        if fingerprint_of(ids) != protocol.windows_fingerprint:
            raise CorruptFile("The token ids in the sample are not those that were measured: ship the model again.")
        return ids
    if text is None:
        raise InputError(
            f"Perplexity was measured on {protocol.text!r}, whose tokens are not in the folder: give that text."
        )
    pasted = text.content is not None
    content = Text("pasted", str(text.content)) if pasted else load_text(text.source, "evaluation", tokenizer)
    ids = make_windows(tokenizer, content, protocol.window, protocol.windows, protocol.spread).ids
    if fingerprint_of(ids) != protocol.windows_fingerprint:
        raise InputError(f"{text.source!r} is not the text that was measured, {protocol.text!r}: give that one.")
    return ids


def _difference(
    found: ReadBack, part: Part, sample: Sample, ids: torch.Tensor, record: ShipRecord, stop: Event | None
) -> Difference:
    assert part.measured is not None and record.protocol is not None  # a loaded record has both
    recorded = sample.logits[part.kind]
    logits = _logits(found.model, sample.ids)[:, sample.positions].cpu()
    absolute = float((logits - recorded).abs().max()) if logits.shape == recorded.shape else float("inf")
    kinds = [name for name in (record.protocol.dtype, found.dtype) if name in LOGITS_TOLERANCE]
    return Difference(
        kind=part.kind,
        logits_max_absolute=absolute,
        logits_max_relative=_share(absolute, float(recorded.abs().max())),
        logits_tolerance=max(LOGITS_TOLERANCE[name] for name in kinds),
        nll=_loss(found.model, ids, stop),
        recorded_nll=part.measured.nll,
        nll_tolerance=max(LOSS_TOLERANCE[name] for name in kinds),
    )


def _share(difference: float, largest: float) -> float:
    """A difference relative to the largest value; of nothing but zeros, 0 or infinite."""
    return difference / largest if largest else 0.0 if not difference else float("inf")


def _loss(model: Any, ids: torch.Tensor, stop: Event | None) -> float:
    """Mean negative log likelihood over windows, (windows, tokens), in nats per token."""
    means = []
    for row in ids:
        raise_if_set(stop)
        logits, targets = _logits(model, row[None])[0, :-1], row[1:]
        parts = zip(logits.split(ROWS), targets.to(logits.device).split(ROWS), strict=True)
        losses = [torch.nn.functional.cross_entropy(part, wanted, reduction="none") for part, wanted in parts]
        means.append(torch.cat(losses).double().mean())
    return float(torch.stack(means).mean())


@torch.inference_mode()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """By the model's own forward pass, not by the way in which the recorded ones were computed."""
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return logits.float()
