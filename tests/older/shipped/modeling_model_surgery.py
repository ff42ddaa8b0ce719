"""A causal language model whose blocks differ in width, heads and parts, as `per_layer_config` describes them.

This file travels with a checkpoint and needs nothing but transformers and torch. The blocks are the family's own,
each built from its own layer configuration; a sublayer that was removed is replaced by a module without weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MODEL_TYPE = "model_surgery"


class NoAttention(nn.Module):
    """In place of a removed attention: contributes nothing to the residual stream.

    Args:
        layer_index: position of the block, for the cache.
    """

    def __init__(self, layer_index: int = 0) -> None:
        super().__init__()
        self.layer_idx = layer_index

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Zeros of the input's shape, and no attention weights."""
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            # One number a token: the length of what was seen is read from the first block's entry.
            marks = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(marks, marks, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class Zeros(nn.Module):
    """In place of a removed MLP or its last linear: zeros of the input's shape."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros like the input."""
        return torch.zeros_like(hidden_states)


def classes(base_model_type: str) -> tuple[Any, Any]:
    """The configuration and the model class over a family of the transformers library.

    Args:
        base_model_type: the family's model type, "llama" for example.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    base_config: Any = CONFIG_MAPPING[base_model_type]
    base_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]

    class SurgeryConfig(base_config):
        """The family's configuration with `per_layer_config` and the places of the parts (`surgery`)."""

        model_type = MODEL_TYPE

        def __post_init__(self, **kwargs: Any) -> None:
            # The family's code reads some of the per-layer numbers from the global configuration, which holds the
            # source model's; the blocks are then rebuilt from their own.
            self.allow_global_per_layer_attribute_access = True
            super().__post_init__(**kwargs)

        def validate(self) -> None:
            """The family's checks but the one that head counts divide the hidden size: here they need not."""
            for check in base_config.__class_validators__:
                if check.__name__ != "validate_architecture":
                    check(self)

    class SurgeryForCausalLM(base_model):
        """The family's model with each block built from its own configuration."""

        config_class = SurgeryConfig

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            places = config.surgery
            layers = self.get_submodule(places["blocks"])
            for index in range(len(layers)):
                layers[index] = _layer(type(layers[index]), config, index)

    return SurgeryConfig, SurgeryForCausalLM


def _layer(kind: type[nn.Module], config: Any, index: int) -> nn.Module:
    """One block from its own configuration."""
    places = config.surgery
    own = config.per_layer_config[index]
    heads = own.num_attention_heads
    if places["resize_heads"]:  # the family divides the hidden size by the number of heads to get their size
        own.num_attention_heads = config.num_attention_heads
    layer = kind(own, index)
    if places["resize_heads"] and heads != config.num_attention_heads:
        _keep_heads(layer.get_submodule(places["attention"]), places["output"], heads, config.num_attention_heads)
    for part in getattr(own, "skip", []):
        for path, stand_in in places["skip"][part].items():
            parent, _, name = path.rpartition(".")
            setattr(layer.get_submodule(parent), name, _stand_in(stand_in, index))
    for path in places["biases"].get(str(index), []):
        linear: Any = layer.get_submodule(path)
        size = linear.weight.shape[1 if not isinstance(linear, nn.Linear) else 0]
        linear.bias = nn.Parameter(torch.zeros(size, dtype=linear.weight.dtype, device=linear.weight.device))
    return layer


def _stand_in(name: str, index: int) -> nn.Module:
    return {"no_attention": NoAttention(index), "zeros": Zeros(), "identity": nn.Identity()}[name]


def _keep_heads(attention: Any, output: str, heads: int, before: int) -> None:
    """Resize the projections of an attention whose code has no head size of its own."""
    for name, linear in list(attention.named_children()):
        if getattr(linear, "weight", None) is None or linear.weight.dim() != 2:
            continue
        stored_by_output = isinstance(linear, nn.Linear)
        outputs, inputs = linear.weight.shape if stored_by_output else reversed(linear.weight.shape)
        if name == output:
            inputs = inputs // before * heads
        else:
            outputs = outputs // before * heads
        if stored_by_output:
            new: nn.Module = nn.Linear(inputs, outputs, bias=linear.bias is not None)
        else:
            new = type(linear)(outputs, inputs)
        setattr(attention, name, new)
    size = attention.head_size if hasattr(attention, "head_size") else attention.head_dim
    for name, value in {"num_heads": heads, "num_attention_heads": heads, "split_size": heads * size}.items():
        if name in attention.__dict__:
            attention.__dict__[name] = value


SurgeryConfig, SurgeryForCausalLM = classes('llama')
