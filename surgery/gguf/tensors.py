"""The tensors of a GGUF file: names, shapes and types known beforehand, values read one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import gguf
import numpy as np

from surgery.errors import CorruptFile, UnsupportedArchitecture
from surgery.folders.files import CheckpointFiles
from surgery.gguf.layout import BlockSizes, Layout
from surgery.gguf.rope import frequency_factors

Read = Callable[[CheckpointFiles], np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
"""Constants that old checkpoints store beside the weights."""
BLOCK = re.compile(r"\.(layers|h)\.(\d+)\.|^(layers|h)\.(\d+)\.")
PREFIXES = ("", "model.", "transformer.")
"""What a checkpoint of the bare backbone leaves out of its tensor names."""


def _same(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file.

    `shape` is numpy's order, the reverse of how GGUF counts dimensions; `read` gives float32 of that shape.
    """

    name: str
    shape: tuple[int, ...]
    read: Read
    sources: tuple[str, ...] = ()
    """Names of the checkpoint's tensors, whose rows follow each other; none for what no checkpoint holds."""
    rows: tuple[int, ...] = ()
    """Rows of each of them, where there are several."""
    restore: Change = field(default=_same, compare=False)
    """Takes the values back to what the checkpoint holds."""

    def split(self, restored: np.ndarray) -> dict[str, np.ndarray]:
        """Restored values as the checkpoint's tensors by name."""
        parts = np.split(restored, np.cumsum(self.rows[:-1])) if self.rows else [restored]
        return dict(zip(self.sources, parts, strict=True))

    @property
    def parameters(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))


def plan(files: CheckpointFiles, layout: Layout) -> list[PlannedTensor]:
    """Every tensor of the file, in the order in which it is written.

    Raises:
        CorruptFile: a tensor is absent or has another shape than the configuration says.
        UnsupportedArchitecture: a tensor has no place in llama.cpp's architecture; the message names it.
    """
    made = {tensor.name: tensor for tensor in (*_constants(files, layout), *_stored(files, layout))}
    if layout.mixed and layout.fused:
        _fuse(made, len(layout.blocks))
    expected = dict(_expected(layout))
    for name, shape in expected.items():
        if name not in made:
            raise CorruptFile(f"The checkpoint lacks the tensor for {name}: build it again.")
        if made[name].shape != shape:
            raise CorruptFile(
                f"The tensor for {name} has the shape {made[name].shape} and config.json says {shape}: build the "
                "checkpoint again."
            )
    return [made[name] for name in sorted(made, key=_order)]


def _fuse(made: dict[str, PlannedTensor], blocks: int) -> None:
    """Put queries, keys and values of each block into one tensor."""
    for number in range(blocks):
        names = [f"blk.{number}.attn_{role}.weight" for role in ("q", "k", "v")]
        if names[0] in made:
            parts = [made.pop(name) for name in names]
            rows = tuple(part.shape[0] for part in parts)
            sources = tuple(source for part in parts for source in part.sources)
            name, shape = f"blk.{number}.attn_qkv.weight", (sum(rows), *parts[0].shape[1:])
            made[name] = PlannedTensor(name, shape, partial(_joined, parts), sources, rows)


def _joined(parts: list[PlannedTensor], files: CheckpointFiles) -> np.ndarray:
    return np.concatenate([part.read(files) for part in parts])


def _order(name: str) -> tuple[int, str]:
    """Embeddings first, then block by block, then the rest."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (int(block[1]) if block else -1 if "embd" in name else 10**9, name)


def _stored(files: CheckpointFiles, layout: Layout) -> Iterator[PlannedTensor]:
    """The checkpoint's own tensors under their GGUF names."""
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.family.architecture)
    names = gguf.get_tensor_name_map(architecture, len(layout.blocks))
    numbers = {block.source: number for number, block in enumerate(layout.blocks)}
    biases = layout.family.biases
    for source in files.names:
        if BUFFERS.search(source) or (source == "lm_head.weight" and layout.tied):
            continue
        renumbered = _renumber(source, numbers)
        tried = (names.get_name(prefix + renumbered, (".weight", ".bias")) for prefix in PREFIXES) if renumbered else ()
        name = next((found for found in tried if found), None)
        role = layout.family.bias_role(source)
        if name is None or (role is not None and role not in biases and not layout.mixed):
            raise UnsupportedArchitecture(
                f"The tensor {source} has no place in llama.cpp's architecture {layout.architecture}: use the "
                "checkpoint with transformers."
            )
        yield _changed(name, source, files.shapes[source], layout)
        if name == "token_embd.weight" and layout.tied and layout.family.own_head:
            yield _changed("output.weight", source, files.shapes[source], layout)


def _renumber(source: str, numbers: dict[int, int]) -> str | None:
    """The name under the file's own block number; None for a block that is not in the file."""
    match = BLOCK.search(source)
    if match is None:
        return source
    group = 2 if match[2] is not None else 4
    number = numbers.get(int(match[group]))
    return None if number is None else f"{source[: match.start(group)]}{number}{source[match.end(group) :]}"


def _changed(name: str, source: str, shape: tuple[int, ...], layout: Layout) -> PlannedTensor:
    """A checkpoint tensor as llama.cpp wants it: Conv1D transposed, Q and K permuted, Gemma's gains whole."""
    role = name.split(".", 2)[2] if name.startswith("blk.") else name
    change: Change = _same
    back: Change = _same
    if layout.family.transposed and role.startswith(("attn_", "ffn_")) and len(shape) == 2:
        change, back, shape = np.transpose, np.transpose, shape[::-1]
    elif turned(name, layout):
        change, back = (partial(turn, head_size=layout.head_size) for turn in (interleave, separate))
    elif layout.family.gain_offset and role.endswith("norm.weight"):
        change, back = (partial(np.add, np.float32(sign * layout.family.gain_offset)) for sign in (1, -1))

    def read(files: CheckpointFiles) -> np.ndarray:
        return np.ascontiguousarray(change(files.read(source)))

    return PlannedTensor(name, shape, read, (source,), restore=back)


def turned(name: str, layout: Layout) -> bool:
    """Whether the rows of a tensor of the file stand in another order than in the checkpoint, see `interleave`."""
    return layout.interleaved and name.startswith("blk.") and name.split(".")[2] in ("attn_q", "attn_k")


def interleave(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Reorder the rows of Q or K (or their biases), heads x head size, from halves to neighbouring pairs.

    transformers rotates row i of a head with row i + size/2, llama.cpp's `llama` graph rows 2i and 2i + 1.
    """
    heads = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def separate(rows: np.ndarray, head_size: int) -> np.ndarray:
    """The inverse of `interleave`."""
    heads = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def _constants(files: CheckpointFiles, layout: Layout) -> Iterator[PlannedTensor]:
    """Tensors that no checkpoint holds: rotary factors, and the zeros that a graph needs (see BlockSizes)."""
    factors = frequency_factors(layout, files.config)
    if factors is not None:
        yield PlannedTensor("rope_freqs.weight", factors.shape, lambda _: factors)
    for number, block in enumerate(layout.blocks):
        for zero, shapes in ((block.zero_attention, _attention), (block.zero_mlp, _mlp)):
            for role, shape in shapes(layout, block) if zero else ():
                read = partial(_filled, shape, float("norm" in role))  # gains of 1, and zeros as weights
                yield PlannedTensor(f"blk.{number}.{role}.weight", shape, read)


def _filled(shape: tuple[int, ...], value: float, files: CheckpointFiles) -> np.ndarray:
    return np.full(shape, value, np.float32)


def _expected(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Weights that the file must hold, with their shapes."""
    hidden = layout.hidden_size
    yield "token_embd.weight", (layout.vocabulary_size, hidden)
    yield "output_norm.weight", (hidden,)
    if not layout.tied:
        yield "output.weight", (layout.vocabulary_size, hidden)
    for number, block in enumerate(layout.blocks):
        parts = [
            *(_attention(layout, block) if block.query_heads else ()),
            *(_mlp(layout, block) if block.width else ()),
        ]
        yield from ((f"blk.{number}.{role}.weight", shape) for role, shape in parts)


def _attention(layout: Layout, block: BlockSizes) -> list[tuple[str, tuple[int, ...]]]:
    query, kv, hidden = block.query_heads * layout.head_size, block.kv_heads * layout.head_size, layout.hidden_size
    wide = layout.family.wide_norms
    sizes = {"attn_q_norm": query if wide else layout.head_size, "attn_k_norm": kv if wide else layout.head_size}
    norms = [name for name in layout.family.norms if "ff" not in name]
    if layout.fused:
        inputs: list[tuple[str, tuple[int, ...]]] = [("attn_qkv", (query + 2 * kv, hidden))]
    else:
        inputs = [("attn_q", (query, hidden)), ("attn_k", (kv, hidden)), ("attn_v", (kv, hidden))]
    return [*((name, (sizes.get(name, hidden),)) for name in norms), *inputs, ("attn_output", (hidden, query))]


def _mlp(layout: Layout, block: BlockSizes) -> list[tuple[str, tuple[int, ...]]]:
    hidden, width, family = layout.hidden_size, block.width, layout.family
    norms = [(name, (hidden,)) for name in family.norms if "ff" in name]
    up = 2 * width if family.fused and family.gated else width
    gate = [("ffn_gate", (width, hidden))] if family.gated and not family.fused else []
    return [*norms, *gate, ("ffn_up", (up, hidden)), ("ffn_down", (hidden, width))]
