"""A causal language model whose blocks differ in width, heads and parts.

This file travels with a checkpoint and needs nothing but transformers and torch. The blocks are the family's own, each
built from the numbers that `surgery.per_layer_config` of config.json gives it; a sublayer that was removed is replaced
by a module without weights.

The model type stays the family's, so that stock tools find the tokenizer and the family's settings without running this
file. The family's own classes cannot build the model: config.json holds `CONSENT` in place of the activation's name,
which they refuse by its text, and `SurgeryConfig` puts the name back.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

CONSENT = "its blocks differ: read modeling_model_surgery.py, then load the model with trust_remote_code=True"
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
"""How configurations name the activation of the MLP."""


def family_of(config: Any) -> str | None:
    """The family that a checkpoint with differing blocks is made from; None for any other checkpoint.

    Args:
        config: of transformers, or what config.json says.
    """
    entries = config if isinstance(config, dict) else config.__dict__
    family = entries.get("base_model_type")
    return family if isinstance(family, str) and isinstance(entries.get("surgery"), dict) else None


def as_built(entries: dict[str, Any]) -> dict[str, Any]:
    """What config.json says, with the numbers that the model is built from; any other checkpoint's as it is."""
    if family_of(entries) is None:
        return entries
    surgery = entries["surgery"]
    found = {**entries, **surgery.get("config", {})}
    if "per_layer_config" in surgery:
        found["per_layer_config"] = surgery["per_layer_config"]
    return found


class NoHeads(nn.Module):
    """In place of a removed attention: contributes nothing to the residual stream.

    Args:
        layer_index: position of the block, for the cache.
        config: of the block; None where no attention maps are asked for.
    """

    def __init__(self, layer_index: int = 0, config: Any = None) -> None:
        nn.Module.__init__(self)  # not the family's, see `_stand_in`
        self.layer_idx, self.config = layer_index, config

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        """Zeros of the input's shape, and a map of no heads, (batch, 0, queries, keys), where others give maps too."""
        batch, queries = hidden_states.shape[:2]
        keys = queries
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            # One number a token: the length of what was seen is read from the first block's entry.
            marks = hidden_states.new_zeros(batch, 1, queries, 1)
            keys = cache.update(marks, marks, self.layer_idx)[0].shape[2]
        eager = getattr(self.config, "_attn_implementation", None) == "eager"
        return torch.zeros_like(hidden_states), hidden_states.new_zeros(batch, 0, queries, keys) if eager else None


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
        """The family's configuration, and what its blocks are made of (`surgery`)."""

        def __post_init__(self, **kwargs: Any) -> None:
            given = as_built({"base_model_type": base_model_type, "surgery": {}, **kwargs})
            surgery = dict(given["surgery"])
            for name, value in surgery.pop("config", {}).items():
                setattr(self, name, value)
            surgery["per_layer_config"] = kwargs.pop("per_layer_config", None) or given.get("per_layer_config", {})
            super().__post_init__(**kwargs | {"surgery": surgery})
            for index in map(int, surgery["per_layer_config"]):
                if not 0 <= index < self.num_hidden_layers:
                    raise ValueError(f"per_layer_config names block {index} of {self.num_hidden_layers}")

        @property
        def per_layer_config(self) -> list[Any]:
            """The configuration of each block."""
            own = {int(index): numbers for index, numbers in self.surgery["per_layer_config"].items()}
            return [_BlockConfig(self, own.get(index, {})) for index in range(self.num_hidden_layers)]

        def validate(self) -> None:
            """The family's checks but the one that head counts divide the hidden size: here they need not."""
            for check in base_config.__class_validators__:
                if check.__name__ != "validate_architecture":
                    check(self)

        def to_json_string(self, use_diff: bool = True) -> str:
            """As the family's own classes read it and refuse to build from it; see the top of this file."""
            entries = json.loads(super().to_json_string(use_diff))
            named = [name for name in ACTIVATIONS if isinstance(getattr(self, name, None), str)]
            stated: dict[str, Any] = dict.fromkeys(named, CONSENT)
            if hasattr(base_config, "validate_architecture") and self.hidden_size % self.num_attention_heads:
                stated["num_attention_heads"] = 1  # which every family's own check lets pass
            entries["surgery"]["config"] = {name: getattr(self, name) for name in stated}
            return json.dumps(entries | stated, indent=2, sort_keys=True) + "\n"

    class SurgeryForCausalLM(base_model):
        """The family's model with each block built from its own configuration."""

        config_class = SurgeryConfig

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            layers = self.get_submodule(config.surgery["blocks"])
            for index, own in enumerate(config.per_layer_config):
                layers[index] = _layer(type(layers[index]), config, own, index)

    return SurgeryConfig, SurgeryForCausalLM


class _BlockConfig:
    """The configuration of the whole model, seen from a block that has some numbers of its own."""

    def __init__(self, whole: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(own, _whole=whole)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_whole" not in self.__dict__:  # a copy in the making has nothing yet
            raise AttributeError(name)
        mapped = self._whole.attribute_map.get(name, name)
        return self.__dict__[mapped] if mapped in self.__dict__ else getattr(self._whole, name)

    @property
    def _attn_implementation(self) -> Any:
        return self._attn_implementation_internal


def _layer(kind: type[nn.Module], config: Any, own: Any, index: int) -> nn.Module:
    """One block from its own configuration."""
    places = config.surgery
    heads = own.num_attention_heads
    if places["resize_heads"]:  # the family divides the hidden size by the number of heads to get their size
        own.__dict__.pop(config.attribute_map.get("num_attention_heads", "num_attention_heads"), None)
    layer = kind(own, index)
    if places["resize_heads"] and heads != config.num_attention_heads:
        _keep_heads(layer.get_submodule(places["attention"]), places["output"], heads, config.num_attention_heads)
    for part in getattr(own, "skip", []):
        for path, stand_in in places["skip"][part].items():
            parent, _, name = path.rpartition(".")
            place = layer.get_submodule(parent)
            setattr(place, name, _stand_in(stand_in, type(getattr(place, name)), own, index))
    for path in places["biases"].get(str(index), []):
        linear: Any = layer.get_submodule(path)
        size = linear.weight.shape[1 if not isinstance(linear, nn.Linear) else 0]
        linear.bias = nn.Parameter(torch.zeros(size, dtype=linear.weight.dtype, device=linear.weight.device))
    return layer


def _stand_in(name: str, replaced: type[nn.Module], own: Any, index: int) -> nn.Module:
    if name == "no_attention":
        # Of the family's class too: transformers collects the maps of all modules of that class.
        return type("NoHeads", (NoHeads, replaced), {})(index, own)
    return {"zeros": Zeros(), "identity": nn.Identity()}[name]


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
