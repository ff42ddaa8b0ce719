"""Independent statement of gradients: a deep copy of a tiny model in float64 with explicit multipliers, and autograd.

Nothing here reads the architecture map or calls the code under test.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from analysis.text import Windows
from tests.reference import heads_of, layout_of, runner_of

POST_NORMS = {
    family: ("post_attention_layernorm", "post_feedforward_layernorm") for family in ("gemma2", "gemma3", "olmo2")
}
"""Where a sublayer's contribution to the state leaves a norm and not its last linear."""
KINDS = ("block", "attention", "mlp", "heads", "kv_groups", "neurons")


class Gated:
    """A float64 copy of a family's model whose parts are multiplied by `gates`, all 1: lists by block, by kind."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.model: Any = copy.deepcopy(runner_of(family).model).double().requires_grad_(True)
        self.blocks = list(self.model.get_submodule(layout_of(family).blocks))
        self.residual = getattr(self.model.config, "residual_multiplier", 1.0)
        query, kv = heads_of(family)
        sizes = {"block": 1, "attention": 1, "mlp": 1, "heads": query, "kv_groups": kv, "neurons": 80}
        self.gates = {
            kind: [torch.ones(size, dtype=torch.float64, requires_grad=True) for _ in self.blocks]
            for kind, size in sizes.items()
        }
        for index, block in enumerate(self.blocks):
            self._install(index, block)

    def _install(self, index: int, block: Any) -> None:
        layout, gates = layout_of(self.family), {kind: gates[index] for kind, gates in self.gates.items()}
        query, kv = heads_of(self.family)
        attention, mlp = POST_NORMS.get(self.family, (layout.output, layout.down))
        block.get_submodule(attention).register_forward_hook(lambda module, args, out: out * gates["attention"])
        block.get_submodule(mlp).register_forward_hook(lambda module, args, out: out * gates["mlp"])

        def scale_heads(module: nn.Module, args: Any) -> Any:
            each = gates["heads"] * gates["kv_groups"].repeat_interleave(query // kv)
            return (args[0] * each.repeat_interleave(args[0].shape[-1] // query),)

        block.get_submodule(layout.output).register_forward_pre_hook(scale_heads)
        block.get_submodule(layout.down).register_forward_pre_hook(lambda module, args: (args[0] * gates["neurons"],))

        def scale_block(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            scaled = before + gates["block"] * (after - before)
            return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

        block.register_forward_hook(scale_block, with_kwargs=True)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean negative log likelihood of the scored tokens of windows (windows, tokens)."""
        log_probabilities = self.model(input_ids=ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        return -log_probabilities.gather(-1, ids[:, 1:, None]).mean()


@dataclass(frozen=True)
class Truth:
    """Per window: derivatives in the gates, kind -> block -> (windows, units); and weight gradients by block and name.

    `weights` has (weight, (windows, ...) gradients) of every linear of each block by its path.
    """

    gates: dict[str, list[torch.Tensor]]
    weights: list[dict[str, tuple[torch.Tensor, torch.Tensor]]]
    loss: float


@cache
def truth_of(family: str, windows_count: int = 3) -> Truth:
    """One backward pass a window over the whole copy."""
    from tests.reference import random_windows

    windows: Windows = random_windows(windows_count)
    gated = Gated(family)
    linears = [
        {name: part for name, part in block.named_modules() if type(part).__name__ in ("Linear", "Conv1D")}
        for block in gated.blocks
    ]
    gates: dict[str, list[list[torch.Tensor]]] = {kind: [[] for _ in linears] for kind in KINDS}
    weights: list[dict[str, list[torch.Tensor]]] = [{name: [] for name in block} for block in linears]
    losses = []
    for window in windows.ids:
        gated.model.zero_grad()
        for kind in KINDS:
            for gate in gated.gates[kind]:
                gate.grad = None
        loss = gated.loss(window[None])
        loss.backward()
        losses.append(float(loss))
        for index, block in enumerate(linears):
            for kind in KINDS:
                gates[kind][index].append(gated.gates[kind][index].grad.clone())  # type: ignore[union-attr]
            for name, part in block.items():
                weights[index][name].append(part.weight.grad.clone())
    return Truth(
        {kind: [torch.stack(rows) for rows in gates[kind]] for kind in KINDS},
        [
            {name: (linears[index][name].weight.detach(), torch.stack(found)) for name, found in block.items()}
            for index, block in enumerate(weights)
        ],
        sum(losses) / len(losses),
    )


def neuron_parts(family: str) -> list[tuple[str, int, int]]:
    """(linear, dimension, offset) of each matrix of a neuron: neuron i is index offset + i along that dimension."""
    plain = {
        "gpt2": ("mlp.c_fc", "mlp.c_proj"),
        "opt": ("fc1", "fc2"),
        "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "gpt_neox_sequential": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "phi": ("mlp.fc1", "mlp.fc2"),
    }
    if family in plain:
        up, down = plain[family]
        return [(up, 1, 0), (down, 0, 0)] if family == "gpt2" else [(up, 0, 0), (down, 1, 0)]
    if family == "phi3":
        return [("mlp.gate_up_proj", 0, 0), ("mlp.gate_up_proj", 0, 80), ("mlp.down_proj", 1, 0)]
    return [("mlp.gate_proj", 0, 0), ("mlp.up_proj", 0, 0), ("mlp.down_proj", 1, 0)]


def head_parts(family: str, size: int) -> list[tuple[str, int, int, int, bool]]:
    """(linear, dimension, offset, stride, shared by the KV group) of query, key, value and output.

    A head's rows (or columns) are offset + head * stride onwards, `size` of them.
    """
    query, kv = heads_of(family)
    if family == "phi3":
        fused, keys = "self_attn.qkv_proj", query * size
        starts = [(0, False), (keys, True), (keys + kv * size, True)]
        return [(fused, 0, start, size, shared) for start, shared in starts] + [("self_attn.o_proj", 1, 0, size, False)]
    if family == "gpt2":
        starts = [(0, False), (48, True), (96, True)]
        return [("attn.c_attn", 1, start, size, s) for start, s in starts] + [("attn.c_proj", 0, 0, size, False)]
    if family.startswith("gpt_neox"):
        fused = "attention.query_key_value"
        rows = [(fused, 0, part * size, 3 * size, part > 0) for part in range(3)]
        return [*rows, ("attention.dense", 1, 0, size, False)]
    output = {"opt": "out_proj", "phi": "dense"}.get(family, "o_proj")
    rows = [(f"self_attn.{name}_proj", 0, 0, size, name != "q") for name in "qkv"]
    return [*rows, (f"self_attn.{output}", 1, 0, size, False)]
