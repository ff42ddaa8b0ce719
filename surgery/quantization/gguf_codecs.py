"""Quantising a structure: which stored form each of its weights has. The weights are encoded when they are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surgery.calibration.moments import Moments
from surgery.gguf.plan import GgufPlan
from surgery.gguf.types import GgufCodec, Kind
from surgery.quantization.quantizer import in_order
from surgery.structure.structure import Codec, Structure


def as_gguf(structure: Structure, plan: GgufPlan, type_name: str, moments: Moments | None = None) -> Structure:
    """The structure as a GGUF file stores it: the types are those that the file will have, tensor by tensor.

    Args:
        structure: nothing but the quantisation may be pending in it.
        plan: of its checkpoint.
        moments: for the importance matrix; None for none.
    """
    importance = None if moments is None else importance_of(structure, moments)
    chosen = plan.kinds(type_name, importance is not None)
    inside = f"{structure.architecture.block_list}."
    blocks: dict[int, dict[str, Codec]] = {}
    outer: dict[str, Codec] = {}
    for tensor in plan.tensors:
        kind = chosen[tensor.name]
        for source in tensor.sources if kind != Kind.F32 else ():
            codec = GgufCodec(kind.name, (importance or {}).get(source))
            path = source.removesuffix(".weight")
            if path.startswith(inside):
                position, _, inner = path.removeprefix(inside).partition(".")
                blocks.setdefault(int(position), {})[inner] = codec
            elif tensor.name == "output.weight":
                outer[structure.architecture.head] = codec
            else:
                outer[path] = codec
    kept = enumerate(structure.kept)
    specs = tuple(replace(spec, codecs=in_order(blocks.get(place, {}))) for place, spec in kept)
    return replace(structure, blocks=specs, outer=in_order(outer), quantize=None)


def importance_of(structure: Structure, moments: Moments) -> dict[str, np.ndarray]:
    """The importance matrix by names of the checkpoint's weights."""
    inside = structure.architecture.block_list
    return {
        f"{inside}.{position}.{path}.weight": values.numpy()
        for position, parts in enumerate(moments)
        for path, values in parts.items()
    }
