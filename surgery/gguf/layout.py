"""What a checkpoint directory holds, as GGUF has to say it: sizes of every block, and the llama.cpp architecture.

A uniform checkpoint becomes the family's own architecture. One whose blocks differ becomes an architecture that reads
widths and head counts per block: `deci` computes what Llama computes, and `openelm` what Qwen 3 does. Only families of
these computations can take this way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from surgery.errors import CorruptFile, UnsupportedArchitecture
from surgery.folders.files import CheckpointFiles
from surgery.gguf.families import FAMILIES, REFUSED, Family, needed

FILLER_WIDTH = 32
"""Neurons of an all-zero MLP: one block of every simple GGML type, so that it quantises like the others."""
DIFFERING = "its blocks differ"
PER_BLOCK = frozenset({"intermediate_size", "num_attention_heads", "num_key_value_heads", "skip"})


@dataclass(frozen=True)
class BlockSizes:
    """One block of the GGUF file. A count of 0 means that the sublayer is absent from the file.

    `zero_attention` and `zero_mlp` mark sublayers that the checkpoint lacks and the file holds as zeros, because
    llama.cpp's graph does not run without them: `deci` takes the rotary size from block 0's heads, and skips a block
    without an MLP together with its attention; `openelm` wants both sublayers in every block.
    """

    source: int
    """Number of the block in the checkpoint."""
    query_heads: int
    kv_heads: int
    width: int
    zero_attention: bool = False
    zero_mlp: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything that the tensors and the metadata are made from."""

    family_name: str
    family: Family
    mixed: Literal["", "deci", "openelm"]
    """The architecture with sizes of each block, where the family's own cannot hold the checkpoint."""
    hidden_size: int
    head_size: int
    vocabulary_size: int
    context_length: int
    tied: bool
    blocks: tuple[BlockSizes, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of the file, one sentence each."""

    @property
    def architecture(self) -> str:
        """Name of the llama.cpp architecture."""
        return self.mixed or self.family.architecture

    @property
    def fused(self) -> bool:
        """Whether Q, K and V are one tensor."""
        return self.family.fused or self.mixed == "openelm"

    @property
    def interleaved(self) -> bool:
        """Whether this architecture rotates neighbouring rows of Q and K, and not the two halves of a head."""
        return self.mixed == "deci" or self.family.interleaved


def lay_out(files: CheckpointFiles) -> Layout:
    """Read the sizes and choose the architecture.

    Raises:
        UnsupportedArchitecture: llama.cpp cannot express the checkpoint; the message says what to do.
        CorruptFile: the configuration lacks a field.
    """
    name = files.family
    family = FAMILIES.get(name)
    if family is None:
        reason = REFUSED.get(name, "GGUF export does not know the family")
        raise UnsupportedArchitecture(
            f"{reason} ({name[:60]}): use the checkpoint with transformers, or choose a model of "
            f"{', '.join(sorted(FAMILIES))}."
        )
    config = files.config
    hidden = int(needed(config, family.names["hidden_size"]))
    heads = int(needed(config, family.names["heads"]))
    context, notes = family.context(config)
    layout = Layout(
        family_name=name,
        family=family,
        mixed="",
        hidden_size=hidden,
        head_size=int(config.get("head_dim") or family.head_size or hidden // heads),
        vocabulary_size=int(needed(config, "vocab_size")),
        context_length=context,
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        blocks=_blocks(config, family, heads, hidden),
        notes=notes,
    )
    family.check(config, layout.head_size, len(layout.blocks), hidden, heads)
    return _with_architecture(layout, files)


def _blocks(config: dict[str, Any], family: Family, heads: int, hidden: int) -> tuple[BlockSizes, ...]:
    """Sizes of every block."""
    count = int(needed(config, family.names["blocks"]))
    kv = int(config.get("num_key_value_heads") or heads)
    width = int(config.get(family.names["width"]) or 4 * hidden)
    differing = _per_block(config, count)
    blocks = []
    for index in range(count):
        own = differing.get(index, {})
        gone = own.get("skip", [])
        block = BlockSizes(
            index,
            0 if "attention" in gone else int(own.get("num_attention_heads", heads)),
            0 if "attention" in gone else int(own.get("num_key_value_heads", kv)),
            0 if "mlp" in gone else int(own.get("intermediate_size", width)),
        )
        blocks.append(block)
    if not any(block.query_heads or block.width for block in blocks):
        raise UnsupportedArchitecture("No block of the checkpoint has a sublayer left: keep at least one.")
    return tuple(blocks)


def _per_block(config: dict[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """`per_layer_config` with whole numbers as keys, checked."""
    given = config.get("per_layer_config") or {}
    try:
        entries = {int(key): dict(value) for key, value in dict(given).items()}
    except (TypeError, ValueError):
        raise CorruptFile("per_layer_config of config.json is malformed: build the checkpoint again.") from None
    for index, entry in entries.items():
        unknown = set(entry) - PER_BLOCK
        gone = entry.get("skip", [])
        if not 0 <= index < count or unknown or not set(gone) <= {"attention", "mlp"}:
            what = f"the unknown key {min(unknown)!r}" if unknown else "a block or sublayer that does not exist"
            raise CorruptFile(f"per_layer_config of config.json names {what}: build the checkpoint again.")
    return entries


def _with_architecture(layout: Layout, files: CheckpointFiles) -> Layout:
    """The family's own architecture where it can hold the checkpoint, else the mixed one, else a refusal."""
    obstacle = _obstacle(layout, files)
    if obstacle is None:
        return layout
    reason = layout.family.no_mixed or _mixed_obstacle(layout, files)
    if reason:
        advice = "give every block the same widths and heads" if obstacle == DIFFERING else "build it without that"
        raise UnsupportedArchitecture(
            f"llama.cpp cannot run this {layout.family_name} checkpoint, because {obstacle} and {reason}: {advice}, or "
            "use the checkpoint with transformers."
        )
    return _as_mixed(layout)


def _obstacle(layout: Layout, files: CheckpointFiles) -> str | None:
    """Why the family's own architecture cannot hold the checkpoint."""
    family = layout.family
    shapes = {(block.query_heads, block.kv_heads, block.width) for block in layout.blocks}
    if len(shapes) > 1 or 0 in next(iter(shapes)):
        return DIFFERING
    if family.square and layout.blocks[0].query_heads * layout.head_size != layout.hidden_size:
        return "its heads together are not as wide as the hidden size"
    for name in files.names:
        role = family.bias_role(name)
        if role is not None and role not in family.biases:
            return f"it has the bias {name}"
    return None


def _mixed_obstacle(layout: Layout, files: CheckpointFiles) -> str | None:
    """Why the architecture with sizes of each block cannot hold the checkpoint."""
    if layout.family.rotary_size(files.config, layout.head_size) != layout.head_size:
        return "only a part of each head is rotated"
    if layout.family.mixed == "openelm" and not layout.tied:
        return "llama.cpp's `openelm` graph takes the embeddings as the head, and this head is its own"
    if layout.family.mixed == "openelm" and (bias := next(filter(layout.family.bias_role, files.names), None)):
        return f"llama.cpp's `openelm` graph has no place for the bias {bias}"
    return None


def _as_mixed(layout: Layout) -> Layout:
    """The same model under the mixed architecture, with zero sublayers where its graph needs some."""
    blocks, notes, mixed = [], list(layout.notes), layout.family.mixed
    # A block with neither sublayer passes its state on unchanged: it is left out.
    for index, block in enumerate(block for block in layout.blocks if block.query_heads or block.width):
        if not block.query_heads and needs_attention(mixed, index):
            block = replace(block, query_heads=1, kv_heads=1, zero_attention=True)
        if not block.width:
            block = replace(block, width=FILLER_WIDTH, zero_mlp=True)
        blocks.append(block)
    if attentions := ", ".join(str(index) for index, block in enumerate(blocks) if block.zero_attention):
        why = "llama.cpp loads no rotary size" if mixed == "deci" else "llama.cpp's graph does not run"
        notes.append(f"Block {attentions} holds an attention of zeros, without which {why}.")
    if zeros := ", ".join(str(index) for index, block in enumerate(blocks) if block.zero_mlp):
        why = "llama.cpp skips the block's attention too" if mixed == "deci" else "llama.cpp's graph does not run"
        notes.append(f"Block {zeros} holds an MLP of {FILLER_WIDTH} zero neurons, without which {why}.")
    return replace(layout, mixed=mixed, blocks=tuple(blocks), notes=tuple(notes))


def needs_attention(mixed: str, position: int) -> bool:
    """Whether a block that lost its attention holds one of zeros in a file of that architecture."""
    return mixed == "openelm" or position == 0
