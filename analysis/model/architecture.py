"""The architecture map: pure data that says where every editable part of a model is and how large it is.

Nothing here touches torch; `analysis.model.describe` fills it from a loaded model. Counts are parameters, sizes are
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

AttentionKind = Literal["full", "sliding"]
NormRole = Literal["pre_attention", "post_attention", "pre_mlp", "post_mlp", "shared"]


@dataclass(frozen=True)
class Projection:
    """One role (query, gate, ...) inside a linear module, fused or not.

    Unit i (a head of `size` rows, or a neuron of one) occupies the rows `offset + i * stride` onwards, `size` of
    them, on the module's output side; for output and down projections the units are columns on the input side.
    """

    module: str
    """Path of the module inside its block."""
    count: int
    """Number of units."""
    size: int = 1
    """Rows (or columns) of one unit."""
    offset: int = 0
    stride: int = 1
    fused: bool = False
    """Whether the module holds other roles too."""
    transposed: bool = False
    """Whether the weight is stored input-first (Conv1D)."""
    bias: bool = False

    def positions(self, units: list[int]) -> list[int]:
        """Rows (or columns) of the given units, in their order."""
        return [self.offset + unit * self.stride + row for unit in units for row in range(self.size)]


@dataclass(frozen=True)
class HeadNorm:
    """A norm on queries or keys: one gain for each head position, or one over all heads together (OLMo 2)."""

    module: str
    over_all_heads: bool


@dataclass(frozen=True)
class Attention:
    """The attention sublayer of a block."""

    module: str
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    head_size: int
    query_heads: int
    kv_heads: int
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None
    kind: AttentionKind
    window: int | None
    """Tokens a sliding attention can look back on."""
    parameters: int
    fixed_parameters: int
    """Parameters that pruning heads does not touch (output bias, norms of one head's size)."""
    hidden_size: int
    groupable: bool = True
    """Whether its code can share one key/value head among several query heads."""
    free_head_size: bool = True
    """Whether its code takes a head size that is not the hidden size over the number of heads."""

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.query_heads // self.kv_heads

    @property
    def per_query_head(self) -> int:
        """Parameters that leave with one query head."""
        norm = self.head_size if self.query_norm and self.query_norm.over_all_heads else 0
        return self._rows(self.query) + self._columns() + norm

    @property
    def per_kv_head(self) -> int:
        """Parameters that leave with one key/value head, its query heads aside."""
        norm = self.head_size if self.key_norm and self.key_norm.over_all_heads else 0
        return self._rows(self.key) + self._rows(self.value) + norm

    def with_hidden(self, hidden: int) -> Attention:
        """The same attention on a residual stream of another width."""
        lost = (self.hidden_size - hidden) * self.head_size * 2 * (self.query_heads + self.kv_heads)
        lost += (self.hidden_size - hidden) * int(self.output.bias)
        new = replace(self, hidden_size=hidden, parameters=self.parameters - lost, fixed_parameters=0)
        movable = new.query_heads * new.per_query_head + new.kv_heads * new.per_kv_head
        return replace(new, fixed_parameters=new.parameters - movable)

    def _rows(self, projection: Projection) -> int:
        return self.head_size * (self.hidden_size + int(projection.bias))

    def _columns(self) -> int:
        return self.head_size * self.hidden_size


@dataclass(frozen=True)
class Mlp:
    """The MLP sublayer of a block; `gate` is None for a plain MLP, `module` for one whose linears sit on the block."""

    module: str | None
    gate: Projection | None
    up: Projection
    down: Projection
    activation: str
    """`silu`, `gelu`, `gelu_tanh`, `sigmoid`, `relu`, `none`, or the class name of another function."""
    width: int
    parameters: int
    fixed_parameters: int
    """Parameters that pruning neurons does not touch (bias of the down projection)."""
    hidden_size: int

    @property
    def gated(self) -> bool:
        """Whether it is a gated linear unit."""
        return self.gate is not None

    @property
    def expansion_ratio(self) -> float:
        """Width over hidden size."""
        return self.width / self.hidden_size

    @property
    def per_neuron(self) -> int:
        """Parameters that leave with one neuron."""
        inputs = [self.up] + ([self.gate] if self.gate else [])
        return sum(self.hidden_size + int(projection.bias) for projection in inputs) + self.hidden_size

    def with_hidden(self, hidden: int) -> Mlp:
        """The same MLP on a residual stream of another width."""
        fixed = hidden if self.down.bias else 0
        new = replace(self, hidden_size=hidden, fixed_parameters=fixed)
        return replace(new, parameters=new.width * new.per_neuron + fixed)


@dataclass(frozen=True)
class Norm:
    """A norm on the residual stream of a block."""

    module: str
    role: NormRole
    parameters: int


@dataclass(frozen=True)
class Block:
    """One decoder block; a sublayer that the checkpoint lacks is None."""

    index: int
    module: str
    """Path of the block inside the model."""
    attention: Attention | None
    mlp: Mlp | None
    norms: tuple[Norm, ...]
    parallel: bool
    """Whether attention and MLP read the same state and are added together (GPT-NeoX, Phi-2)."""
    parameters: int

    def norm(self, role: NormRole) -> Norm | None:
        """The norm of that role, if the block has one."""
        return next((norm for norm in self.norms if norm.role == role), None)

    def sublayer_parameters(self, part: Literal["attention", "mlp"]) -> int:
        """Parameters that leave with a sublayer and the norms that serve it alone; 0 where there is none."""
        sublayer = self.attention if part == "attention" else self.mlp
        if sublayer is None:
            return 0
        return sublayer.parameters + sum(norm.parameters for norm in self.sublayer_norms(part))

    def sublayer_norms(self, part: Literal["attention", "mlp"]) -> tuple[Norm, ...]:
        """The norms that serve a sublayer alone."""
        roles = (f"pre_{part}", f"post_{part}")
        return tuple(norm for norm in self.norms if norm.role in roles)

    def with_hidden(self, hidden: int, before: int) -> Block:
        """The same block on a residual stream of another width (`before` is the present one)."""
        attention = self.attention.with_hidden(hidden) if self.attention else None
        mlp = self.mlp.with_hidden(hidden) if self.mlp else None
        norms = tuple(replace(norm, parameters=norm.parameters // before * hidden) for norm in self.norms)
        parts = [part.parameters for part in (attention, mlp, *norms) if part is not None]
        return replace(self, attention=attention, mlp=mlp, norms=norms, parameters=sum(parts))


@dataclass(frozen=True)
class Architecture:
    """Everything that edits and memory arithmetic need to know of a model."""

    family: str
    """The configuration's model type; for display only, nothing depends on it."""
    model_class: str
    hidden_size: int
    vocabulary_size: int
    context_length: int
    blocks: tuple[Block, ...]
    backbone: str
    """Path of the module that holds the block list."""
    block_list: str
    embeddings: str
    final_norm: str | None
    head: str
    tied: bool
    """Whether the head's weight is the embeddings' weight."""
    parameters: int
    """Tied tensors once."""
    embedding_parameters: int
    """Token and position embeddings, and the norms or projections beside them."""
    head_parameters: int
    """0 when tied without a bias."""
    final_norm_parameters: int
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_per_parameter(self) -> float:
        """Mean over the loaded tensors."""
        return sum(self.bytes_by_dtype.values()) / self.parameters

    def with_hidden(self, hidden: int) -> Architecture:
        """The same model with a residual stream of another width: what a checkpoint with fewer channels holds."""
        before = self.hidden_size
        blocks = tuple(block.with_hidden(hidden, before) for block in self.blocks)
        embeddings = self.embedding_parameters // before * hidden
        head = self.head_parameters
        if head >= self.vocabulary_size * before:  # not tied; a bias has one entry a word and stays
            head -= self.vocabulary_size * (before - hidden)
        norm = self.final_norm_parameters // before * hidden
        parameters = embeddings + head + norm + sum(block.parameters for block in blocks)
        return replace(
            self,
            hidden_size=hidden,
            blocks=blocks,
            embedding_parameters=embeddings,
            head_parameters=head,
            final_norm_parameters=norm,
            parameters=parameters,
            bytes_by_dtype={name: size * parameters // self.parameters for name, size in self.bytes_by_dtype.items()},
        )
