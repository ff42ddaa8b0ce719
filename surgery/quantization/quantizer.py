"""Quantising the linears of an edited model: round to nearest, GPTQ from calibration windows, torchao's types.

Embeddings, head and norms stay as they are. GPTQ is one sweep over the blocks, each solved on the states that the
quantised blocks before it give. Everything is determined by the structure, its quantisation and the windows.
"""

from __future__ import annotations

from collections.abc import Callable
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
from surgery.quantization.gguf_codecs import with_codecs
from surgery.quantization.gptq import gptq, hessian
from surgery.quantization.grid import Grid, Packed, round_to_nearest, scale_type_for
from surgery.quantization.torchao import TorchaoCodec
from surgery.recipe.storage import Quantize
from surgery.structure.structure import BlockSpec, Codec, Codecs, Structure

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
Quantise = Callable[[str, torch.Tensor], Codec]
"""Given the name of a linear and its weight (outputs, inputs), how it is stored."""


class Quantiser:
    """Quantises one model's structures in the formats compressed-tensors and torchao.

    Args:
        runner: the model; never changed.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @torch.no_grad()
    def compute(
        self,
        structure: Structure,
        windows: Windows | None = None,
        report: Report = silent,
        stop: Event | None = None,
    ) -> Structure:
        """Compute the quantisation of a structure: its blocks get codecs, and `quantize` is done with.

        Args:
            structure: with `quantize`, and its compensations computed.
            windows: the calibration windows, for GPTQ.
            report: progress; may raise to stop.
            stop: ends the work between two linears.

        Raises:
            InputError: GPTQ without windows, groups that do not divide a row, or linears that the format cannot hold.
            Cancelled: `stop` was set.
        """
        edit = structure.quantize
        if edit is None:
            return structure
        if edit.format == "gguf" or structure.compensations:
            raise ValueError("GGUF types, or structures with compensations to compute, are not for this")
        if edit.method == "gptq" and windows is None:
            raise InputError("GPTQ needs a calibration text: name one, or choose round_to_nearest.")
        calibrated = windows.ids if windows is not None and edit.method == "gptq" else None
        sweep = Sweep(self.runner, structure, calibrated, report, stop, "Quantising")
        done: dict[int, dict[str, Codec]] = {}
        for position, spec in enumerate(sweep):
            done[position] = self._gptq(sweep, spec, edit) if edit.method == "gptq" else self._plain(sweep, spec, edit)
            if edit.method == "gptq":
                sweep.advance(replace(spec, codecs=_sorted(done[position])))
        report(1.0, "Quantised")
        return with_codecs(structure, done, {})

    def _plain(self, sweep: Sweep, spec: BlockSpec, edit: Quantize) -> dict[str, Codec]:
        """Every linear of a block on its own."""
        quantise = _torchao(edit) if edit.format == "torchao" else _nearest(edit)
        module = sweep.module(spec)
        paths = [path for stage in linear_paths(sweep.block(spec), spec) for path in stage]
        codecs = {}
        for path in paths:
            sweep.check()
            codecs[path] = quantise(_name(spec, path), weight_for(module, path, edit.format))
        return codecs

    def _gptq(self, sweep: Sweep, spec: BlockSpec, edit: Quantize) -> dict[str, Codec]:
        """The linears of a block by GPTQ: stage after stage on what the quantised ones give, or all on what the
        unquantised block gives."""
        stages = linear_paths(sweep.block(spec), spec)
        rounds = [(stage,) for stage in stages] if edit.true_sequential else [stages]
        codecs: dict[str, Codec] = {}
        for stages in rounds:
            so_far = replace(spec, codecs=_sorted(codecs))
            module = sweep.module(so_far)
            covariances = sweep.covariances(so_far, [stage[0] for stage in stages])  # of a stage, all read the same
            for stage in stages:
                seen = covariances[stage[0]]
                h = hessian(seen.total, seen.tokens)
                for path in stage:
                    sweep.check()
                    weight = weight_for(module, path, edit.format)
                    name = _name(spec, path)
                    codecs[path] = gptq(weight, h, _grid(edit, weight, name), edit.act_order, name)
        return codecs


def _sorted(codecs: dict[str, Codec]) -> Codecs:
    return tuple(sorted(codecs.items()))


def _grid(edit: Quantize, weight: torch.Tensor, name: str) -> Grid:
    if edit.type == "int4" and not edit.symmetric and len(weight) <= 8:
        # Of a single word of zero points a group, the library's unpacking of 4 bits trips over the strides.
        raise InputError(
            f"{name} has only {len(weight)} outputs, and compressed-tensors 0.20 cannot read 4-bit zero points of so "
            "few: choose symmetric, or another type."
        )
    return Grid(BITS[edit.type], edit.group_size, edit.symmetric, scale_type_for(weight.dtype))


def _nearest(edit: Quantize) -> Quantise:
    return lambda name, weight: round_to_nearest(weight, _grid(edit, weight, name), name)


def _torchao(edit: Quantize) -> Quantise:
    codec = TorchaoCodec.of(edit)

    def quantise(name: str, weight: torch.Tensor) -> Codec:
        codec.check(weight.shape[1], name)
        return codec

    return quantise


def _name(spec: BlockSpec, path: str) -> str:
    return f"{path} of block {spec.source}"


def stored_bytes(structure: Structure) -> int:
    """Bytes that the codes and repairs of a structure hold in memory, for caches."""
    held: list[torch.Tensor] = []
    for spec in structure.blocks:
        for _, codec in spec.codecs:
            if isinstance(codec, Packed):
                held += [codec.codes, codec.scales, codec.zeros]
        if spec.repair is not None:
            held += [*spec.repair.down.values(), *spec.repair.up.values()]
    return 64 + sum(tensor.numel() * tensor.element_size() for tensor in held)


def weight_for(module: nn.Module, path: str, format_name: str) -> torch.Tensor:
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
