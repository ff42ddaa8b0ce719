"""Which GGML type each tensor of a GGUF file has: llama.cpp's mixes, and what takes a type's place in short rows.

Source: the rules of `llama-quantize` (llama.cpp, src/llama-quant.cpp) for models without experts. A mix gives some
tensors more bits than its name says: the values, the down projections and the output projections of some blocks, and
the head. Two kinds of type are not llama.cpp's mixes: Q3_K, Q4_K and Q5_K without an ending are that type everywhere
(its `--pure`), and MXFP4, which it makes for experts only, is MXFP4 in every block and Q8_0 in embeddings and head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import gguf

from surgery.errors import InputError
from surgery.gguf.types import Kind, fits, kind_of
from surgery.recipe.storage import GgufType

PURE = ("Q3_K", "Q4_K", "Q5_K")
FILE_TYPES: dict[str, gguf.LlamaFileType] = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "Q3_K": gguf.LlamaFileType.MOSTLY_Q3_K_S,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "Q5_K": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "MXFP4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
}
"""The number by which a file names its type, where it is not MOSTLY_ and the type's name."""
SHORT_ROWS = {
    Kind.IQ3_S: Kind.IQ4_NL,
    Kind.IQ4_XS: Kind.IQ4_NL,
    Kind.Q2_K: Kind.Q4_0,
    Kind.Q3_K: Kind.Q4_0,
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}
"""Takes the place of a type with blocks of 256 in rows that are not whole blocks."""
SEVENTY_BLOCKS = 80


def file_type(type_name: str) -> gguf.LlamaFileType:
    """The number that `general.file_type` holds."""
    return FILE_TYPES[type_name] if type_name in FILE_TYPES else gguf.LlamaFileType[f"MOSTLY_{type_name}"]


def check_type(type_name: str) -> None:
    """Refuse what is not a type. Raises InputError, which lists the types."""
    if type_name not in get_args(GgufType):
        raise InputError(f"GGUF has no type {type_name!r} here: choose one of {', '.join(get_args(GgufType))}.")


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands: its role, its rank among the tensors of that role, and how many llama.cpp counts.

    It counts the values that there are, and the blocks for every other role, whether each has such a tensor or not.
    """

    role: str
    rank: int
    count: int

    @property
    def first_eighth(self) -> bool:
        return self.rank < self.count // 8

    @property
    def more_bits(self) -> bool:
        """The first and last eighth, and every third one between them."""
        eighth = self.count // 8
        return self.rank < eighth or self.rank >= 7 * self.count // 8 or (self.rank - eighth) % 3 == 2


@dataclass(frozen=True)
class Shared:
    """How query heads share the keys and values of the first block, by which some mixes go."""

    heads_per_group: int = 1
    """Query heads per key/value head; 1 without attention."""
    architecture: str = ""
    """llama.cpp's name of the file's architecture."""

    def seventy(self, blocks: int) -> bool:
        """Whether llama.cpp takes a file of so many blocks for a 70B model, whose values it gives more bits."""
        if blocks != SEVENTY_BLOCKS:
            return False
        return self.architecture in ("qwen2", "deci") or (self.architecture == "llama" and self.heads_per_group > 1)


def kinds(
    shapes: Mapping[str, Sequence[int]], type_name: str, shared: Shared = Shared(), importance: bool = False
) -> dict[str, Kind]:
    """The type of every tensor of a file.

    Args:
        shapes: of the file's tensors by name, rows last, in the order of the file.

    Raises:
        InputError: unknown type.
    """
    check_type(type_name)
    tied = "output.weight" not in shapes
    blocks = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blk.")), default=-1)
    values = sum(_role(name) == "attn_v" and len(shape) > 1 for name, shape in shapes.items())
    ranks: dict[str, int] = {}
    found: dict[str, Kind] = {}
    for name in sorted(shapes, key=_block):
        shape = tuple(shapes[name])
        if len(shape) < 2 or name.startswith(("rope_", "position_embd")):
            found[name] = Kind.F32
            continue
        role = _role(name)
        place = _Place(role, ranks.get(role, 0), values if role == "attn_v" else blocks)
        ranks[role] = place.rank + 1
        outer = role == "output" or (tied and role == "token_embd")
        kind = _head_kind(type_name, shape[-1]) if outer else _kind(type_name, place, shared, importance)
        if role == "attn_v" and type_name not in PURE and shared.seventy(blocks) and kind in (Kind.Q3_K, Kind.Q4_K):
            kind = Kind.Q5_K
        found[name] = _in_rows(kind, shape[-1])
    return {name: found[name] for name in shapes}


def _block(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _role(name: str) -> str:
    role = name.split(".")[2] if name.startswith("blk.") else name.split(".")[0]
    return "attn_v" if role == "attn_qkv" else role


def _default(type_name: str) -> Kind:
    """The type that the mix is named after."""
    if type_name == "IQ3_M":
        return Kind.IQ3_S
    return kind_of(re.sub("_[SML]$", "", type_name) if "_K_" in type_name else type_name)


def _in_rows(kind: Kind, row: int) -> Kind:
    """The type, or what takes its place in rows that are not whole blocks of it."""
    for candidate in (kind, SHORT_ROWS.get(kind, kind)):
        if fits(row, candidate):
            return candidate
    return Kind.F16


def _head_kind(type_name: str, row: int) -> Kind:
    """The head, and embeddings that serve as the head: at least six bits but in a pure file."""
    default = _default(type_name)
    if type_name in PURE or default in (Kind.F32, Kind.F16):
        return default
    if type_name == "MXFP4" or default == Kind.Q8_0 or not fits(row, default):
        return Kind.Q8_0
    return Kind.Q6_K


def _kind(type_name: str, place: _Place, shared: Shared, importance: bool) -> Kind:
    """What the mix gives a tensor of a block, or embeddings that stand beside a head."""
    default = _default(type_name)
    if place.role == "token_embd":
        return Kind.Q8_0 if type_name == "MXFP4" else default
    if place.role == "attn_v":
        return _values_kind(type_name, place, shared.heads_per_group) or default
    if place.role == "ffn_down":
        return _down_kind(type_name, place, importance) or default
    if place.role == "attn_output":
        return {"Q2_K": Kind.Q3_K, "Q3_K_M": Kind.Q4_K, "Q3_K_L": Kind.Q5_K, "IQ3_M": Kind.Q4_K}.get(type_name, default)
    return default


def _values_kind(type_name: str, place: _Place, heads_per_group: int) -> Kind | None:
    many = heads_per_group >= 4
    match type_name:
        case "Q2_K":
            return Kind.Q4_K if many else Kind.Q3_K
        case "Q3_K_M":
            return Kind.Q5_K if place.rank < 2 else Kind.Q4_K
        case "Q3_K_L":
            return Kind.Q5_K
        case "Q4_K_S":
            return Kind.Q5_K if place.rank < 4 else None
        case "Q4_K_M" | "Q5_K_M":
            return Kind.Q6_K if place.more_bits else None
        case "IQ3_S":
            return Kind.Q4_K if many else None
        case "IQ3_M":
            return Kind.Q4_K
        case "IQ4_NL" | "IQ4_XS":
            return Kind.Q5_K if many else None
    return None


def _down_kind(type_name: str, place: _Place, importance: bool) -> Kind | None:
    match type_name:
        case "Q2_K":
            return Kind.Q3_K
        case "Q3_K_M":
            return Kind.Q5_K if place.rank < place.count // 16 else Kind.Q4_K
        case "Q3_K_L":
            return Kind.Q5_K
        case "Q4_K_S":
            return Kind.Q5_K if place.first_eighth else None
        case "Q4_K_M" | "Q5_K_M":
            return Kind.Q6_K if place.more_bits else None
        case "IQ3_M":
            return Kind.Q4_K if place.first_eighth else None
        case "IQ4_NL" | "IQ4_XS":
            return Kind.Q5_K if place.first_eighth and not importance else None
        case "Q4_0":
            return Kind.Q4_1 if place.first_eighth and importance else None
    return None
