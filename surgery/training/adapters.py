"""What a healing leaves behind: adapters in peft's format (or trained weights), and merging them into a structure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.files import check_folder
from analysis.model.modules import weight_of
from analysis.model.runner import Runner
from surgery.errors import CorruptFile
from surgery.structure.narrow import build_block
from surgery.structure.structure import Refit, Structure
from surgery.training.linears import AdaptedLinear
from surgery.training.student import Place, Student

ADAPTER, WEIGHTS, CONFIG = "adapter_model.safetensors", "weights.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""In front of every name of peft's files."""
Parts = Mapping[str, torch.Tensor]
"""`down` (rank, inputs), `up` (outputs, rank) and for DoRA `magnitude` (outputs,); or `weight` (outputs, inputs)."""
_NAMES = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


@dataclass(frozen=True)
class Adapter:
    """Trained tensors by place in the built model. `scale` multiplies up @ down."""

    parts: Mapping[Place, Parts]
    scale: float

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, shapes and values, the first 16 hexadecimal digits."""
        digest = hashlib.sha256(repr(self.scale).encode())
        for place, parts in sorted(self.parts.items(), key=lambda item: (item[0].position, item[0].path)):
            for name, tensor in sorted(parts.items()):
                digest.update(f"{place.position} {place.path} {name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for parts in self.parts.values() for tensor in parts.values())

    @property
    def low_rank(self) -> bool:
        """Whether peft can load it, as opposed to trained weights."""
        return all("weight" not in parts for parts in self.parts.values())


def adapter_of(student: Student) -> Adapter:
    """What a student has learnt."""
    parts: dict[Place, Parts] = {}
    for place, linear in student.linears.items():
        if isinstance(linear, AdaptedLinear):
            found = {"down": linear.down.detach().clone(), "up": linear.up.detach().clone()}
            if linear.magnitude is not None:
                found["magnitude"] = linear.magnitude.detach().clone()
            parts[place] = found
        else:
            parts[place] = {"weight": linear.result()}
    return Adapter(parts, student.edit.alpha / student.edit.rank)


@torch.no_grad()
def merge(runner: Runner, structure: Structure, adapter: Adapter) -> Structure:
    """A structure, as it was trained, with an adapter merged into its weights, as refits.

    Where blocks were quantised while it was trained, all their weights are now those that it was trained over, in
    floating point. Raises CorruptFile: the adapter is of another structure.
    """
    fingerprint = adapter.fingerprint
    kept = list(structure.kept)
    by_position: dict[int, dict[str, Parts]] = {}
    for place, parts in adapter.parts.items():
        by_position.setdefault(place.position, {})[place.path] = parts
    if any(position >= len(kept) for position in by_position):
        raise CorruptFile("The adapter is of a model with more blocks: give the one that belongs to the recipe.")
    for position, spec in enumerate(kept):
        linears = by_position.get(position, {})
        if not linears and not spec.codecs:
            continue
        block = structure.architecture.blocks[spec.source]
        module = build_block(runner.blocks[spec.source], block, spec)
        weights = dict(spec.refit.weights) if spec.refit else {}
        biases = dict(spec.refit.biases) if spec.refit else {}
        for path, _ in spec.codecs:
            weights[path] = weight_of(module.get_submodule(path)).float().clone()
        for path, parts in linears.items():
            try:
                weights[path] = merged(weight_of(module.get_submodule(path)), parts, adapter.scale)
            except (AttributeError, RuntimeError):
                raise CorruptFile(
                    "The adapter does not fit the recipe's blocks: give the one of this recipe."
                ) from None
        stored = ",".join(f"{path}={codec.key}" for path, codec in spec.codecs)
        key = f"{spec.refit.key if spec.refit else ''} {stored} heal {fingerprint} {position}"
        kept[position] = replace(spec, refit=Refit(key, weights, biases), codecs=(), repair=None)
    return replace(structure, blocks=tuple(kept), healing=None)


def merged(weight: torch.Tensor, parts: Parts, scale: float) -> torch.Tensor:
    """One weight (outputs, inputs) after training, float32. Source of the magnitudes: DoRA (2402.09353), Eq. 5."""
    if "weight" in parts:
        if parts["weight"].shape != weight.shape:
            raise RuntimeError("a trained weight of another shape")
        return parts["weight"].float()
    made = weight.float().addmm(parts["up"].to(weight.device), parts["down"].to(weight.device), alpha=scale)
    if "magnitude" in parts:
        made *= (parts["magnitude"].to(weight.device) / made.norm(dim=1))[:, None]
    return made


def write(adapter: Adapter, student: Student, base: str, folder: Path) -> None:
    """Write peft's two files, which `PeftModel.from_pretrained` loads onto the built checkpoint; or trained weights.

    `base` is the name of the model that the recipe edits; the folder is there already.
    """
    from safetensors.torch import save_file

    blocks = student.runner.architecture.block_list
    tensors: dict[str, torch.Tensor] = {}
    for place, parts in adapter.parts.items():
        name = f"{blocks}.{place.position}.{place.path}"
        if "weight" in parts:
            tensors[f"{name}.weight"] = parts["weight"].contiguous()
        else:
            tensors |= {f"{PREFIX}{name}.{_NAMES[part]}": tensor.contiguous() for part, tensor in parts.items()}
    note = {"format": "pt", "scale": repr(adapter.scale), "blocks": blocks}
    save_file(tensors, folder / (ADAPTER if adapter.low_rank else WEIGHTS), metadata=note)
    if adapter.low_rank:
        (folder / CONFIG).write_text(json.dumps(_peft_config(adapter, student, base), indent=2) + "\n", "utf-8")


def _peft_config(adapter: Adapter, student: Student, base: str) -> dict[str, Any]:
    """peft's own configuration of this adapter as JSON values."""
    from peft import LoraConfig

    blocks, edit = student.runner.architecture.block_list, student.edit
    ranks = {f"{blocks}.{p.position}.{p.path}": len(parts["down"]) for p, parts in adapter.parts.items()}
    odd = {name: rank for name, rank in ranks.items() if rank != edit.rank}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=edit.rank,
        lora_alpha=edit.alpha,
        lora_dropout=edit.dropout,
        target_modules=sorted(ranks),
        fan_in_fan_out=_transposed(student),
        use_dora=edit.train == "dora",
        rank_pattern=odd,
        alpha_pattern={name: adapter.scale * rank for name, rank in odd.items()},
        inference_mode=True,
    )
    document = {name: value for name, value in config.to_dict().items() if value is not None}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in document.items()}


def _transposed(student: Student) -> bool:
    """Whether the family stores its weights input-first."""
    block = next(iter(student.runner.architecture.blocks))
    projection = block.mlp.down if block.mlp is not None else block.attention.output if block.attention else None
    return projection is not None and projection.transposed


def read(folder: Path) -> Adapter:
    """Read what `write` wrote. Raises CorruptFile: absent or damaged."""
    from safetensors import SafetensorError, safe_open

    check_folder(folder)
    path = folder / ADAPTER if (folder / ADAPTER).is_file() else folder / WEIGHTS
    parts: dict[Place, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
            for name in file.keys():  # noqa: SIM118
                place, part = _place(name, note["blocks"])
                parts.setdefault(place, {})[part] = file.get_tensor(name)
        return Adapter(parts, float(note["scale"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, StopIteration) as error:
        raise CorruptFile(f"The adapter in {folder.name!r} cannot be read ({str(error)[:80]}): heal again.") from None


def _place(name: str, blocks: str) -> tuple[Place, str]:
    inner = name.removeprefix(PREFIX).removeprefix(f"{blocks}.")
    position, _, rest = inner.partition(".")
    part, ending = next(
        (part, ending) for part, ending in {**_NAMES, "weight": "weight"}.items() if rest.endswith(f".{ending}")
    )
    return Place(int(position), rest.removesuffix(f".{ending}")), part
