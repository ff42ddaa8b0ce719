"""Compensation without training: refit what stays so that it makes up for what went.

One sweep over the blocks, each fitted on the prefix that is edited and refitted already. Everything is determined by
the structure, the recipe's compensations and the calibration windows; the last quarter of the windows is kept aside to
choose the ridge and to leave out refits that do not help there.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from threading import Event
from typing import Any

import torch
from torch import nn

from analysis.model.architecture import Block
from analysis.model.modules import weight_of
from analysis.model.runner import BlockCall, Runner
from analysis.text import Windows
from surgery.calibration.sweep import Group, inputs_of
from surgery.common.cache import ByteCache
from surgery.common.progress import Report, raise_if_set, silent
from surgery.compensation.least_squares import Fitted, PairMoments, best_refit
from surgery.errors import InputError
from surgery.recipe.edits import Compensate
from surgery.structure.narrow import build_block
from surgery.structure.structure import BlockSpec, Part, Refit, Structure, narrowed, output_of, whole

Run = tuple[BlockSpec, ...]


@dataclass(frozen=True)
class Entry:
    """What one refit reached. Errors are shares of the target's energy, on the fitted windows and on those aside."""

    block: int
    """In the source model's numbering."""
    part: str
    """`attention`, `mlp`, or `run` for a linear patch across the removed sublayers behind the block."""
    applied: bool
    ridge: float | None
    plain_error: float
    error: float
    plain_error_aside: float
    error_aside: float


@dataclass(frozen=True)
class Compensated:
    """A structure with refitted blocks, nothing left to compute, and what each refit reached."""

    structure: Structure
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Of the refitted weights, for a cache."""
        return sum(_bytes(spec.refit) for spec in self.structure.blocks)

    def document(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [asdict(entry) for entry in self.entries]


@dataclass
class _Group(Group):
    """Windows that go through a block together, and whether they are kept aside."""

    aside: bool = False


class Compensator:
    """Computes the compensations of one model's structures; refits are remembered by content.

    Args:
        budget: bytes of remembered refits.
    """

    def __init__(self, runner: Runner, budget: int = 512 * 2**20) -> None:
        self.runner = runner
        self._known: ByteCache[tuple[Refit | None, tuple[Entry, ...]]] = ByteCache(budget)

    @torch.no_grad()
    def compute(
        self, structure: Structure, windows: Windows, report: Report = silent, stop: Event | None = None
    ) -> Compensated:
        """Compute every compensation of a structure.

        Args:
            structure: as resolved, with `compensations`.
            windows: the calibration windows that the compensations name, at least 2.

        Raises:
            InputError: fewer than 2 windows.
        """
        if not structure.compensations:
            return Compensated(structure, ())
        groups = self._groups(windows)
        kept = structure.kept
        edits = "|".join(edit.model_dump_json(exclude={"chosen_by", "text"}) for edit in structure.compensations)
        link = hashlib.sha256(f"{windows.fingerprint}|{edits}".encode()).hexdigest()
        done: list[BlockSpec] = []
        entries: list[Entry] = []
        for position, spec in enumerate(kept):
            raise_if_set(stop)
            report(position / len(kept), f"Compensating block {position + 1} of {len(kept)}")
            runs = self._runs_behind(structure, kept, position)
            link = hashlib.sha256(f"{link}>{spec.key}>{runs}".encode()).hexdigest()[:32]
            known = self._known.get(link)
            if known is None:
                known = self._refit(structure, spec, runs, groups, link)
                self._known.put(link, known, _bytes(known[0]))
            new = replace(spec, refit=known[0])
            entries += known[1]
            done.append(new)
            module = self._module(new)
            for group in groups:
                group.advance(self.runner, module, new)
        report(1.0, "Compensated")
        return Compensated(replace(structure, blocks=tuple(done), compensations=()), tuple(entries))

    def _groups(self, windows: Windows) -> list[_Group]:
        if windows.count < 2:
            raise InputError("A compensation needs at least 2 calibration windows, one of them to be kept aside.")
        aside = max(1, windows.count // 4)
        return [
            _Group(group.prepared, group.state, is_aside)
            for ids, is_aside in ((windows.ids[:-aside], False), (windows.ids[-aside:], True))
            for group in Group.cut(self.runner, ids)
        ]

    def _runs_behind(self, structure: Structure, kept: tuple[BlockSpec, ...], position: int) -> dict[Part, Run]:
        """The removed sublayers behind each sublayer that stays, up to the next one that stays; empty runs left out.

        A run is given as what is left to compute: specs of source blocks that hold the removed parts alone. Blocks
        whose sublayers stand side by side can only be missing as a whole.
        """
        if not any(edit.how == "linear_patch" for edit in structure.compensations):
            return {}
        blocks = self.runner.architecture.blocks
        spec = kept[position]
        block = blocks[spec.source]
        end = kept[position + 1] if position + 1 < len(kept) else None
        behind = [whole(blocks[index]) for index in range(spec.source + 1, end.source if end else len(blocks))]
        if end is not None and not end.attention and blocks[end.source].attention and not blocks[end.source].parallel:
            behind.append(replace(whole(blocks[end.source]), neurons=()))
        runs: dict[Part, Run] = {}
        if spec.mlp:
            runs["mlp"] = tuple(behind)
        elif spec.attention and block.mlp is not None and not block.parallel:
            runs["attention"] = (replace(whole(block), query_heads=(), kv_heads=()), *behind)
        return {part: run for part, run in runs.items() if run}

    def _refit(
        self, structure: Structure, spec: BlockSpec, runs: dict[Part, Run], groups: list[_Group], key: str
    ) -> tuple[Refit | None, tuple[Entry, ...]]:
        """Everything that is refitted in one block: attention, then MLP on its result, then the run behind it."""
        weights: dict[str, torch.Tensor] = {}
        biases: dict[str, torch.Tensor] = {}
        entries: list[Entry] = []
        block = self.runner.architecture.blocks[spec.source]
        parts: tuple[Part, ...] = ("attention", "mlp")
        for part in parts:
            edit = _edit_for(structure, ("least_squares", "bias"), spec.source)
            if edit is None or not narrowed(block, spec, part):
                continue
            so_far = replace(spec, refit=Refit(key, dict(weights), dict(biases)))
            path = output_of(block, part).module
            start, bias = self._weight(so_far, path)
            fit, aside = self._moments(so_far, block, part, groups)
            if edit.how == "bias":
                missing = fit.mean_miss(start)
                biases[path] = ((0 if bias is None else bias) + missing).float()
                continue
            fitted = best_refit(fit, aside, start, edit.ridge)
            entries.append(_entry(spec.source, part, fitted))
            if fitted.ridge is not None:
                weights[path] = fitted.weight.float()
        for part, run in runs.items():
            edit = _edit_for(structure, ("linear_patch",), spec.source)
            if edit is None:
                continue
            so_far = replace(spec, refit=Refit(key, dict(weights), dict(biases)))
            fitted = self._patch(so_far, part, run, groups, edit.ridge)
            entries.append(_entry(spec.source, "run", fitted))
            if fitted.ridge is not None:
                path = output_of(block, part).module
                weight, bias = self._weight(so_far, path)
                weights[path] = (fitted.weight @ weight).float()
                if bias is not None:
                    biases[path] = (fitted.weight @ bias).float()
        return (Refit(key, weights, biases) if weights or biases else None), tuple(entries)

    def _module(self, spec: BlockSpec) -> nn.Module:
        return build_block(self.runner.blocks[spec.source], self.runner.architecture.blocks[spec.source], spec)

    def _weight(self, spec: BlockSpec, path: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A linear's weight (outputs, inputs) and bias in float64."""
        linear: Any = self._module(spec).get_submodule(path)
        return weight_of(linear).double().cpu(), None if linear.bias is None else linear.bias.double().cpu()

    def _moments(
        self, spec: BlockSpec, block: Block, part: Part, groups: list[_Group]
    ) -> tuple[PairMoments, PairMoments]:
        """What the narrowed output projection reads against what the whole one wrote (its bias left out)."""
        path = output_of(block, part).module
        original = whole(block)
        if part == "attention":
            full = replace(spec, query_heads=original.query_heads, kv_heads=original.kv_heads, merged="", biases=(),
                           refit=None)  # fmt: skip
        else:
            full = replace(spec, neurons=original.neurons, biases=tuple(p for p in spec.biases if p == "attention"))
        whole_module, narrow_module = self._module(full), self._module(spec)
        linear: Any = whole_module.get_submodule(path)
        pair: dict[bool, PairMoments] = {}
        for group in groups:
            call = group.prepared.calls[spec.source]
            read = self._input_of(whole_module, path, group.state, call)
            if part == "mlp":  # neurons do not see each other: what stays reads the same
                inputs = read[..., list(spec.neurons)]
            else:
                inputs = self._input_of(narrow_module, path, group.state, call)
            written = read @ weight_of(linear).T
            moments = pair.setdefault(group.aside, PairMoments.empty(inputs.shape[-1], written.shape[-1]))
            moments.update(inputs, written)
        return pair[False], pair[True]

    def _input_of(self, module: nn.Module, path: str, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """What a linear inside a block reads while the block runs."""
        return inputs_of(self.runner, module, [path], state, call)[path]

    def _patch(self, spec: BlockSpec, part: Part, run: Run, groups: list[_Group], ridge: float | None) -> Fitted:
        """The map T of what a sublayer adds, so that the state behind it is nearest to the one behind the removed run.

        With Y the state beside the sublayer, C what it adds and R the state after the run: min |C T^T + Y - R|^2,
        pulled towards the identity. Source: ReplaceMe (2505.02819), Eq. 4 to 6, for whole blocks; here a run of
        removed sublayers, folded into whichever output projection stands before it.
        """
        beside = self._module(_without(spec, part, self.runner.architecture.blocks[spec.source]))
        present = self._module(spec)
        removed = [(self._module(missing), missing.source) for missing in run]
        pair: dict[bool, PairMoments] = {}
        for group in groups:
            call = group.prepared.calls[spec.source]
            alone = self.runner.run(beside, group.state, call)
            out = self.runner.run(present, group.state, call)
            after = out
            for module, source in removed:
                after = self.runner.run(module, after, group.prepared.calls[source])
            size = out.shape[-1]
            moments = pair.setdefault(group.aside, PairMoments.empty(size, size))
            moments.update(out - alone, after - alone)
        return best_refit(pair[False], pair[True], torch.eye(size, dtype=torch.float64), ridge)


def _without(spec: BlockSpec, part: Part, block: Block) -> BlockSpec:
    """The spec with one sublayer gone, and the other's refit alone."""
    other: Part = "mlp" if part == "attention" else "attention"
    new = replace(spec, biases=tuple(kept for kept in spec.biases if kept == other))
    new = replace(new, query_heads=(), kv_heads=(), merged="") if part == "attention" else replace(new, neurons=())
    if spec.refit is None or not getattr(new, other):
        return replace(new, refit=None)
    path = output_of(block, other).module
    weights, biases = (
        {name: value for name, value in values.items() if name == path}
        for values in (spec.refit.weights, spec.refit.biases)
    )
    return replace(new, refit=Refit(f"{spec.refit.key} {other}", weights, biases))


def _edit_for(structure: Structure, how: tuple[str, ...], block: int) -> Compensate | None:
    for edit in structure.compensations:
        if edit.how in how and (edit.blocks is None or block in edit.blocks):
            return edit
    return None


def _entry(block: int, part: str, fitted: Fitted) -> Entry:
    return Entry(
        block,
        part,
        fitted.ridge is not None,
        fitted.ridge,
        fitted.plain_error,
        fitted.error,
        fitted.plain_error_aside,
        fitted.error_aside,
    )


def _bytes(refit: Refit | None) -> int:
    tensors = [*refit.weights.values(), *refit.biases.values()] if refit else []
    return 64 + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
