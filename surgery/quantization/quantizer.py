"""Quantising the linears of an edited model: each on its own, or by calibration windows.

Embeddings, head and norms stay as they are. With windows it is one sweep over the blocks, each solved on the states
that the quantised blocks before it give. Everything is determined by the structure, its quantisation and the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event

import torch
from torch import nn

from analysis.model.modules import is_transposed, weight_of
from analysis.model.runner import Runner
from analysis.text import Windows
from surgery.calibration.sweep import Sweep, linear_paths
from surgery.common.progress import Report, silent
from surgery.errors import InputError
from surgery.quantization.gptq import hessian
from surgery.recipe.storage import Quantize
from surgery.structure.structure import BlockSpec, Codec, Codecs, Structure

Encode = Callable[[str, torch.Tensor, torch.Tensor | None], Codec]
"""Given a linear's name, its weight (outputs, inputs) and `gptq.hessian` of its inputs (None without calibration), how
it is stored."""


@torch.no_grad()
def quantise(
    runner: Runner,
    structure: Structure,
    encode: Encode,
    windows: Windows | None = None,
    report: Report = silent,
    stop: Event | None = None,
) -> Structure:
    """Compute the quantisation of a structure: its blocks get codecs, and `quantize` is done with.

    Args:
        structure: with `quantize`, and its compensations computed.
        encode: stores a linear, as the format of `quantize` does.
        windows: the calibration windows, for GPTQ.

    Raises:
        InputError: GPTQ without windows, groups that do not divide a row, or linears that the format cannot hold.
    """
    edit = structure.quantize
    if edit is None:
        return structure
    if structure.compensations:
        raise ValueError("the structure's compensations have not been computed")
    if edit.method == "gptq" and windows is None:
        raise InputError("GPTQ needs a calibration text: name one, or choose round_to_nearest.")
    calibrated = windows.ids if windows is not None and edit.method == "gptq" else None
    sweep = Sweep(runner, structure, calibrated, report, stop, "Quantising")
    blocks = sweep.rework(lambda spec: _quantised(sweep, spec, edit, encode))
    report(1.0, "Quantised")
    return replace(structure, blocks=tuple(spec for spec in blocks if not spec.empty), outer=(), quantize=None)


def _quantised(sweep: Sweep, spec: BlockSpec, edit: Quantize, encode: Encode) -> BlockSpec:
    """The linears of a block: without calibration each on its own, else stage after stage on what the quantised ones
    give, or all on what the unquantised block gives."""
    stages = linear_paths(sweep.block(spec), spec)
    rounds = [(stage,) for stage in stages] if sweep.groups and edit.true_sequential else [stages]
    codecs: dict[str, Codec] = {}
    for stages in rounds:
        so_far = replace(spec, codecs=in_order(codecs))
        module = sweep.module(so_far)
        covariances = sweep.covariances(so_far, [stage[0] for stage in stages])  # of a stage, all read the same
        for stage in stages:
            seen = covariances.get(stage[0])
            h = None if seen is None else hessian(seen.total, seen.tokens)
            for path in stage:
                sweep.check()
                codecs[path] = encode(_called(path, spec), _weight(module, path, edit.format), h)
    return replace(spec, codecs=in_order(codecs))


def row_lengths(structure: Structure) -> dict[str, int]:
    """Inputs of every linear of the kept blocks, by what it is called in a message."""
    architecture = structure.architecture
    found: dict[str, int] = {}
    for spec in structure.kept:
        block = architecture.blocks[spec.source]
        rows = {}
        if block.attention is not None:
            rows[block.attention.output.module] = len(spec.query_heads) * block.attention.head_size
        if block.mlp is not None:
            rows[block.mlp.down.module] = len(spec.neurons)
        for stage in linear_paths(block, spec):
            found |= {_called(path, spec): rows.get(path, architecture.hidden_size) for path in stage}
    return found


def _called(path: str, spec: BlockSpec) -> str:
    return f"{path} of block {spec.source}"


def in_order(codecs: Mapping[str, Codec]) -> Codecs:
    """Codecs by path as a block's spec holds them."""
    return tuple(sorted(codecs.items()))


def _weight(module: nn.Module, path: str, format_name: str) -> torch.Tensor:
    """The weight (outputs, inputs) of a linear that is to be stored in a format of torch checkpoints.

    Raises:
        InputError: it is stored input-first, which neither compressed-tensors nor torchao can hold.
    """
    linear = module.get_submodule(path)
    if is_transposed(linear):
        raise InputError(
            f"{path} is a {type(linear).__name__}, whose weights {format_name} cannot hold: quantise the model as GGUF."
        )
    return weight_of(linear)


def codecs_by_name(structure: Structure) -> dict[str, Codec]:
    """Codecs of the blocks' linears by their names in the checkpoint."""
    inside = structure.architecture.block_list
    return {
        f"{inside}.{place}.{path}": codec for place, spec in enumerate(structure.kept) for path, codec in spec.codecs
    }


def left_out(model: nn.Module, codecs: Mapping[str, Codec]) -> list[str]:
    """Linears that are not quantised: the head, and what a family has around its blocks."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in codecs]


def stored_bytes(structure: Structure) -> int:
    """Bytes that the codes and repairs of a structure hold in memory, for caches."""
    held: list[torch.Tensor] = []
    for spec in structure.blocks:
        for _, codec in spec.codecs:
            held += [part for part in vars(codec).values() if isinstance(part, torch.Tensor)]
        if spec.repair is not None:
            held += [*spec.repair.down.values(), *spec.repair.up.values()]
    return 64 + sum(tensor.numel() * tensor.element_size() for tensor in held)
