"""The memory and speed model: arithmetic on a structure, a weight type, a context, a KV-cache type and a device.

What is counted is in files of its own: weights (`weights`, `weight_types`), the KV cache (`kv_cache`), activations and
the program (`runtimes`, `amx`), speed (`speed`). `benchmarks.fit` compares all of it with measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surgery.common.numbers import whole
from surgery.fit.amx import amx_bytes
from surgery.fit.devices import Device
from surgery.fit.kv_cache import check_kv_type, kv_cache_bytes, usable_kv_type
from surgery.fit.runtimes import GPUS, LLAMA_CPP, TRANSFORMERS, Runtime, activation_bytes, runtime_for
from surgery.fit.speed import Speed, speed
from surgery.fit.weight_types import Stored, stored, weight_type
from surgery.formats.format import WeightType
from surgery.structure.structure import Structure


@dataclass(frozen=True)
class Fit:
    """Whether and how an edited model fits a device. Bytes; everything is arithmetic, the activations and the overhead
    are estimates."""

    device: str
    type: str
    kv_type: str
    """Of the KV cache's elements; F16 where the wanted one is not possible, see `notes`."""
    context: int
    runtime: str
    weights: dict[str, int]
    kv_cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    capacity_bytes: int
    working_bytes: int
    speed: Speed
    notes: tuple[str, ...] = ()
    """What a person should know of the figures, one sentence each."""

    @property
    def weights_bytes(self) -> int:
        """All weights."""
        return sum(self.weights.values())

    @property
    def needed_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def spare_bytes(self) -> int:
        """What is left, or missing when negative: of all memory, or of the working memory where that is tighter."""
        working = self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes
        return min(self.capacity_bytes - self.needed_bytes, self.working_bytes - working)

    @property
    def room_bytes(self) -> int:
        """What weights may take; negative by what is missing for the rest where that alone does not fit."""
        working = self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes
        return self.working_bytes - working if working > self.working_bytes else self.capacity_bytes - working

    @property
    def fits(self) -> bool:
        """Whether nothing is missing."""
        return self.spare_bytes >= 0

    @property
    def decode_tokens_per_second(self) -> float:
        """See `surgery.fit.speed`."""
        return self.speed.decode

    def document(self) -> dict[str, Any]:
        """The contract's JSON keys, and more."""
        return {
            "device": self.device,
            "type": self.type,
            "kv_type": self.kv_type,
            "context": self.context,
            "runtime": self.runtime,
            "fits": self.fits,
            "weights_bytes": self.weights_bytes,
            "weights": self.weights,
            "kv_cache_bytes": self.kv_cache_bytes,
            "activation_bytes": self.activation_bytes,
            "overhead_bytes": self.overhead_bytes,
            "needed_bytes": self.needed_bytes,
            "capacity_bytes": self.capacity_bytes,
            "spare_bytes": self.spare_bytes,
            "decode_tokens_per_second": self.speed.decode,
            "prefill_tokens_per_second": self.speed.prefill,
            "speed_basis": self.speed.basis,
            "decode_bound_tokens_per_second": self.speed.decode_bound,
            "prefill_bound_tokens_per_second": self.speed.prefill_bound,
            "energy_joules_per_token": self.speed.energy_joules_per_token,
            "notes": list(self.notes),
        }


def fit(
    structure: Structure,
    device: Device,
    context: int,
    kind: str | WeightType = "F16",
    kv_type: str = "F16",
    runtime: Runtime | None = None,
) -> Fit:
    """The memory and speed model.

    Args:
        structure: what runs; nothing in it has to be computed.
        context: tokens, all of them in use.
        kind: how its weights are stored, by name or as `weight_types.type_of_edit` gives it.
        runtime: the program that runs it; the one that goes with the type and the device when None.

    Raises:
        InputError: the context is not positive or makes no sense, or a type is unknown.
    """
    whole(context, "The context (tokens)", 1)
    check_kv_type(kv_type)
    kind = weight_type(kind) if isinstance(kind, str) else kind
    runtime = runtime or runtime_for(kind, device)
    together = runtime.together(context)
    used = _kv_type(structure, kind, runtime, kv_type)
    weights = stored(structure, kind)
    laid_out = amx_bytes(weights) if device.amx and runtime is LLAMA_CPP else 0
    return Fit(
        device=device.id,
        type=kind.name,
        kv_type=used,
        context=context,
        runtime=runtime.name,
        weights=weights.by_class,
        kv_cache_bytes=kv_cache_bytes(structure, context, used, together if runtime is LLAMA_CPP else 0),
        activation_bytes=activation_bytes(structure, runtime, kind, context, device.kind in GPUS),
        overhead_bytes=runtime.overhead_bytes(structure, device) + laid_out,
        capacity_bytes=device.capacity_bytes,
        working_bytes=device.working_bytes,
        speed=speed(structure, device, weights, runtime, context, used),
        notes=(*_beyond(structure, context), *_notes(weights, runtime, kv_type, used, laid_out)),
    )


def _beyond(structure: Structure, context: int) -> tuple[str, ...]:
    """Marks figures of a context that the model was not made for."""
    most = structure.architecture.context_length
    if not 0 < most < context:
        return ()
    return (f"The model takes at most {most:,} tokens of context: the figures for {context:,} are arithmetic alone.",)


def _kv_type(structure: Structure, kind: WeightType, runtime: Runtime, wanted: str) -> str:
    """The type that the KV cache can have there: transformers keeps it in the type that it computes in."""
    if runtime is TRANSFORMERS:
        narrow = kind.type == "F16" or structure.architecture.bytes_per_parameter < 3
        return "F16" if narrow else "F32"
    return usable_kv_type(structure, wanted)


def _notes(weights: Stored, runtime: Runtime, wanted: str, used: str, laid_out: int) -> tuple[str, ...]:
    kind, notes = weights.kind, []
    if laid_out:
        notes.append(
            f"llama.cpp lays the weights out for the processor's AMX unit: {laid_out / 1e6:.1f} MB more than the file, "
            "counted with the program."
        )
    if wanted != used and runtime is TRANSFORMERS:
        notes.append(f"transformers keeps the KV cache in the type that it computes in, so it is counted in {used}.")
    elif wanted != used:
        notes.append(f"The heads are not whole blocks of {wanted}, so the KV cache is counted in {used}.")
    obstacle = kind.obstacle(weights.shapes)
    if obstacle:
        notes.append(f"{kind.name} cannot be written ({obstacle}): choose another group size or other widths.")
    return (*notes, *kind.format.notes(kind.type))
