"""The architecture map: pure data that says where every editable part of a model is and how large it is.

Nothing here touches torch; `analysis.describe` fills it from a loaded model. Counts are parameters, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    activation_module: str | None
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
        roles = (f"pre_{part}", f"post_{part}")
        return sublayer.parameters + sum(norm.parameters for norm in self.norms if norm.role in roles)


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
