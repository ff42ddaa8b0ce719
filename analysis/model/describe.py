"""From a loaded model to its architecture map, by structure and module role rather than by model name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from analysis.errors import UnsupportedArchitecture
from analysis.model.architecture import Architecture, Attention, Block, HeadNorm, Mlp, Norm, NormRole, Projection
from analysis.model.modules import is_transposed

QUERY, KEY, VALUE = ("q_proj", "wq", "query"), ("k_proj", "wk", "key"), ("v_proj", "wv", "value")
FUSED_QKV = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
GATE, UP = ("gate_proj", "w1"), ("up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h")
FUSED_GATE_UP = ("gate_up_proj",)
DOWN = ("down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h")
ACTIVATION = ("act_fn", "activation_fn", "act", "activation")
QUERY_NORM, KEY_NORM = ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")
FINAL_NORM = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


def describe(model: nn.Module) -> Architecture:
    """Map a causal language model of the transformers library.

    Raises:
        UnsupportedArchitecture: a part is not of a known structure; the message names the module.
    """
    list_path, blocks = _block_list(model)
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no configuration: only models of the transformers library can be edited."
        )
    backbone_path = list_path.rpartition(".")[0]
    backbone = model.get_submodule(backbone_path)
    _refuse_unusual(config, backbone, list_path, blocks)
    head = cast(Any, model).get_output_embeddings()
    embeddings = cast(Any, model).get_input_embeddings()
    if head is None or embeddings is None:
        raise UnsupportedArchitecture("The model has no language-model head or no token embeddings.")
    names = {module: name for name, module in model.named_modules()}
    final_norm = _child(backbone, FINAL_NORM)
    mapped = tuple(_block(model, config, f"{list_path}.{index}", block, index) for index, block in enumerate(blocks))
    # Offloaded tensors are placeholders that have lost their identity: there the configuration says what is tied.
    tied = head.weight is embeddings.weight or (head.weight.is_meta and bool(config.tie_word_embeddings))
    tensors = [tensor for tensor in model.parameters() if not (tied and tensor is head.weight)]
    tensors += [embeddings.weight] if tied else []
    parameters = _count(tensors)
    head_parameters = _count(tensor for tensor in head.parameters() if not (tied and tensor is head.weight))
    norm_parameters = _count(final_norm[1].parameters()) if final_norm else 0
    in_blocks = sum(block.parameters for block in mapped)
    return Architecture(
        family=str(getattr(config, "model_type", "unknown")),
        model_class=type(model).__name__,
        hidden_size=int(embeddings.embedding_dim),
        vocabulary_size=int(embeddings.num_embeddings),
        context_length=int(getattr(config, "max_position_embeddings", 0) or 0),
        blocks=mapped,
        backbone=backbone_path,
        block_list=list_path,
        embeddings=names[embeddings],
        final_norm=f"{backbone_path}.{final_norm[0]}" if final_norm else None,
        head=names[head],
        tied=tied,
        parameters=parameters,
        embedding_parameters=parameters - in_blocks - head_parameters - norm_parameters,
        head_parameters=head_parameters,
        final_norm_parameters=norm_parameters,
        bytes_by_dtype=_bytes_by_dtype(tensors),
    )


def _refuse_unusual(config: Any, backbone: nn.Module, path: str, blocks: list[nn.Module]) -> None:
    """Structures whose parts have familiar names and on which no edit here would be exact."""
    parent = path.rpartition(".")[0]
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitecture(f"{path} belongs to an encoder-decoder model: only decoder models can be edited.")
    if getattr(backbone, "project_in", None) is not None:
        raise UnsupportedArchitecture(
            f"{parent}.project_in changes the width of the embeddings, which cannot be edited."
        )
    for index, block in enumerate(blocks):
        if getattr(block, "do_layer_norm_before", True) is False:
            raise UnsupportedArchitecture(
                f"{path}.{index} normalises the residual stream after each sublayer, which cannot be edited."
            )
        name, attention = _find_attention(block) or ("", None)
        if attention is None:
            continue
        unusual = {"alibi", "residual"} & set(inspect.signature(type(attention).forward).parameters)
        if unusual:
            raise UnsupportedArchitecture(
                f"{path}.{index}.{name} takes {' and '.join(sorted(unusual))} (as BLOOM does), which cannot be edited."
            )


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum({id(tensor): tensor.numel() for tensor in parameters}.values())


def _bytes_by_dtype(tensors: Iterable[torch.Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for parameter in {id(tensor): tensor for tensor in tensors}.values():
        name = str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + parameter.numel() * parameter.element_size()
    return sizes


def _child(module: nn.Module, names: tuple[str, ...]) -> tuple[str, nn.Module] | None:
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, nn.Module):
            return name, found
    return None


def _block_list(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The module list of blocks, each with an attention (unless it was removed); the longest if there are several."""
    config = getattr(model, "config", None)
    best: tuple[str, list[nn.Module]] | None = None
    for name, module in model.named_modules():
        holds_blocks = isinstance(module, nn.ModuleList) and all(
            _find_attention(child) or "attention" in _removed(config, index) for index, child in enumerate(module)
        )
        if holds_blocks and len(module) > (len(best[1]) if best else 0):
            best = name, list(module)
    if best is None:
        raise UnsupportedArchitecture(
            f"{type(model).__name__} has no list of decoder blocks with attention: only decoder models of the "
            "transformers library can be edited."
        )
    return best


def _find_attention(block: nn.Module) -> tuple[str, nn.Module] | None:
    for name, child in block.named_children():
        if _child(child, OUTPUT) and (_child(child, QUERY) or _child(child, FUSED_QKV)):
            return name, child
    return None


def _block(model: nn.Module, config: Any, path: str, block: nn.Module, index: int) -> Block:
    for name, module in block.named_modules():
        if "expert" in name.rsplit(".", 1)[-1] and not isinstance(module, (nn.Linear, nn.Identity)):
            raise UnsupportedArchitecture(f"{path}.{name} is a mixture of experts, which cannot be edited yet.")
    found = _find_attention(block)
    attention = _attention(config, path, *found, index=index) if found else None
    mlp = None if "mlp" in _removed(config, index) else _mlp(config, path, block, found[0] if found else "")
    parallel = _is_parallel(block)
    return Block(
        index=index,
        module=path,
        attention=attention,
        mlp=mlp,
        norms=_norms(block, path, parallel),
        parallel=parallel,
        parameters=_count(block.parameters()),
    )


def _removed(config: Any, index: int) -> Sequence[str]:
    """Sublayers of a block that a built checkpoint lacks, as its configuration says."""
    mixed = hasattr(config, "surgery") or getattr(config, "is_heterogeneous", False)
    return getattr(config.per_layer_config[index], "skip", ()) if mixed and index < config.num_hidden_layers else ()


def _linear(path: str, parent: nn.Module, names: tuple[str, ...]) -> tuple[str, nn.Module]:
    found = _child(parent, names)
    if found is None:
        raise UnsupportedArchitecture(f"{path} ({type(parent).__name__}) has none of {', '.join(names)}.")
    if not isinstance(found[1], nn.Linear) and not is_transposed(found[1]):
        raise UnsupportedArchitecture(f"{path}.{found[0]} is a {type(found[1]).__name__}, not a plain linear layer.")
    return found


def _has_bias(linear: nn.Module) -> bool:
    return getattr(linear, "bias", None) is not None


def _attention(config: Any, path: str, name: str, module: nn.Module, index: int) -> Attention:
    where = f"{path}.{name}"
    output_name, output = _linear(where, module, OUTPUT)
    inner, hidden = _shape(output)
    query_heads = int(config.num_attention_heads)
    head_size = int(getattr(module, "head_dim", None) or getattr(module, "head_size", None) or inner // query_heads)
    if inner % head_size:
        raise UnsupportedArchitecture(
            f"{where}.{output_name} takes {inner} inputs, no multiple of head size {head_size}."
        )
    query_heads = inner // head_size
    fused = _child(module, FUSED_QKV)
    if fused:
        kv_heads, projections = _fused_qkv(config, where, fused, query_heads, head_size, output)
        query, key, value = (_prefixed(name, projection) for projection in projections)
    else:
        found = [_linear(where, module, names) for names in (QUERY, KEY, VALUE)]
        kv_heads = _shape(found[1][1])[1] // head_size
        query, key, value = (
            Projection(
                f"{name}.{child}", count, head_size, 0, head_size, False, is_transposed(linear), _has_bias(linear)
            )
            for (child, linear), count in zip(found, (query_heads, kv_heads, kv_heads), strict=True)
        )
    norms = [_head_norm(module, name, names, head_size) for names in (QUERY_NORM, KEY_NORM)]
    kind, window = _attention_kind(config, module, index)
    partial = Attention(
        module=name,
        query=query,
        key=key,
        value=value,
        output=Projection(
            f"{name}.{output_name}",
            query_heads,
            head_size,
            0,
            head_size,
            transposed=is_transposed(output),
            bias=_has_bias(output),
        ),
        head_size=head_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        query_norm=norms[0],
        key_norm=norms[1],
        kind=kind,
        window=window,
        parameters=_count(module.parameters()),
        fixed_parameters=0,
        hidden_size=hidden,
        groupable=hasattr(module, "num_key_value_groups"),
        free_head_size=_takes_a_head_size(config, module, index, head_size),
    )
    movable = query_heads * partial.per_query_head + kv_heads * partial.per_kv_head
    return Attention(**{**partial.__dict__, "fixed_parameters": partial.parameters - movable})


def _takes_a_head_size(config: Any, module: nn.Module, index: int, head_size: int) -> bool:
    """Whether this attention class follows a configuration's `head_dim`, tried out without allocating anything."""
    trial = copy.copy(config)
    try:
        trial.head_dim = 2 * head_size
        with torch.device("meta"):
            return getattr(type(module)(trial, index), "head_dim", None) == 2 * head_size
    except (TypeError, ValueError, AttributeError, RuntimeError):  # a class with another constructor or rule
        return False


def _prefixed(prefix: str, projection: Projection) -> Projection:
    return Projection(**{**projection.__dict__, "module": f"{prefix}.{projection.module}"})


def _fused_qkv(
    config: Any, where: str, fused: tuple[str, nn.Module], query_heads: int, head_size: int, output: nn.Module
) -> tuple[int, list[Projection]]:
    """Rows of q, k and v in one linear: interleaved head by head in GPT-NeoX, one after the other elsewhere."""
    name, linear = fused
    rows = _shape(linear)[1]
    kv_heads = (rows // head_size - query_heads) // 2
    if (query_heads + 2 * kv_heads) * head_size != rows or kv_heads < 1 or query_heads % kv_heads:
        raise UnsupportedArchitecture(
            f"{where}.{name} has {rows} rows, which no split into heads of {head_size} explains."
        )
    interleaved = name == "query_key_value" and kv_heads == query_heads
    if name == "query_key_value" and not interleaved:
        raise UnsupportedArchitecture(f"{where}.{name} mixes grouped heads in one tensor, which cannot be edited yet.")
    offsets = [0, 1, 2] if interleaved else [0, query_heads, query_heads + kv_heads]
    stride = 3 * head_size if interleaved else head_size
    return kv_heads, [
        Projection(name, count, head_size, offset * head_size, stride, True, is_transposed(linear), _has_bias(linear))
        for offset, count in zip(offsets, (query_heads, kv_heads, kv_heads), strict=True)
    ]


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear."""
    weight = cast(torch.Tensor, linear.weight)
    return (weight.shape[0], weight.shape[1]) if is_transposed(linear) else (weight.shape[1], weight.shape[0])


def _head_norm(module: nn.Module, prefix: str, names: tuple[str, ...], head_size: int) -> HeadNorm | None:
    found = _child(module, names)
    if found is None:
        return None
    weight = getattr(found[1], "weight", None)
    return HeadNorm(f"{prefix}.{found[0]}", weight is not None and weight.numel() != head_size)


def _attention_kind(config: Any, module: nn.Module, index: int) -> tuple[Any, int | None]:
    window = getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    sliding = types[index] == "sliding_attention" if types else window is not None
    if getattr(config, "use_sliding_window", True) is False:
        sliding = False
    return ("sliding", int(window)) if sliding and window else ("full", None)


def _mlp(config: Any, path: str, block: nn.Module, attention_name: str) -> Mlp:
    owner_name, owner = _mlp_owner(path, block, attention_name)
    where = f"{path}.{owner_name}" if owner_name else path
    prefix = f"{owner_name}." if owner_name else ""
    down_name, down = _linear(where, owner, DOWN)
    width, hidden = _shape(down)
    fused = _child(owner, FUSED_GATE_UP)
    if fused:
        name, linear = _linear(where, owner, FUSED_GATE_UP)
        gate: Projection | None = Projection(f"{prefix}{name}", width, fused=True, bias=_has_bias(linear))
        up = Projection(f"{prefix}{name}", width, offset=width, fused=True, bias=_has_bias(linear))
    else:
        up_name, up_linear = _linear(where, owner, UP)
        up = Projection(f"{prefix}{up_name}", width, transposed=is_transposed(up_linear), bias=_has_bias(up_linear))
        gate_found = _child(owner, GATE)
        gate = Projection(f"{prefix}{gate_found[0]}", width, bias=_has_bias(gate_found[1])) if gate_found else None
    linears = {
        id(linear): linear
        for linear in (
            down,
            *(owner.get_submodule(p.module.removeprefix(prefix)) for p in (up, *([gate] if gate else []))),
        )
    }
    activation_name = next((name for name in ACTIVATION if callable(getattr(owner, name, None))), None)
    activation = activation_kind(getattr(owner, activation_name)) if activation_name else "none"
    return Mlp(
        module=owner_name or None,
        gate=gate,
        up=up,
        down=Projection(f"{prefix}{down_name}", width, transposed=is_transposed(down), bias=_has_bias(down)),
        activation=activation,
        width=width,
        parameters=sum(_count(linear.parameters()) for linear in linears.values()),
        fixed_parameters=hidden if _has_bias(down) else 0,
        hidden_size=hidden,
    )


def _mlp_owner(path: str, block: nn.Module, attention_name: str) -> tuple[str, nn.Module]:
    """The module that holds the MLP's linears: a child, or the block itself (OPT)."""
    for name, child in block.named_children():
        if name != attention_name and _child(child, DOWN) and (_child(child, UP) or _child(child, FUSED_GATE_UP)):
            return name, child
    if _child(block, DOWN) and _child(block, UP):
        return "", block
    children = ", ".join(name for name, _ in block.named_children())
    raise UnsupportedArchitecture(f"{path} has no MLP with an up and a down projection (children: {children}).")


def activation_kind(function: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Name an activation by its values, whatever class or function computes it."""
    points = torch.linspace(-4, 4, 33)
    known: dict[str, torch.Tensor] = {
        "silu": nn.functional.silu(points),
        "gelu": nn.functional.gelu(points),
        "gelu_tanh": nn.functional.gelu(points, approximate="tanh"),
        "relu": nn.functional.relu(points),
        "sigmoid": torch.sigmoid(points),
        "none": points,
    }
    with torch.no_grad():
        values = function(points.clone())
    distance = {name: float((values - expected).abs().max()) for name, expected in known.items()}
    nearest = min(distance, key=lambda name: distance[name])
    return nearest if distance[nearest] < 1e-5 else getattr(function, "__name__", type(function).__name__)


def _is_parallel(block: nn.Module) -> bool:
    """GPT-NeoX says so in an attribute; Phi-2 has a single norm before both sublayers."""
    declared = getattr(block, "use_parallel_residual", None)
    if declared is not None:
        return bool(declared)
    norms = [name for name, child in block.named_children() if _is_norm(child)]
    return len(norms) == 1


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _norms(block: nn.Module, path: str, parallel: bool) -> tuple[Norm, ...]:
    found = {name: child for name, child in block.named_children() if _is_norm(child)}
    # A removed sublayer's norms have left stand-ins whose names still tell what the others are for.
    names = {name for name, child in block.named_children() if _is_norm(child) or isinstance(child, nn.Identity)}
    return tuple(
        Norm(name, _norm_role(names, name, path, parallel), _count(child.parameters())) for name, child in found.items()
    )


def _norm_role(names: set[str], name: str, path: str, parallel: bool) -> NormRole:
    """Roles by name, read together with the names beside it (`post_attention_layernorm` has two meanings)."""
    if len(names) == 1 and parallel:
        return "shared"
    has_post_norms = "post_feedforward_layernorm" in names
    roles: dict[str, NormRole] = {
        "input_layernorm": "pre_attention",
        "ln_1": "pre_attention",
        "self_attn_layer_norm": "pre_attention",
        "post_attention_layernorm": "post_attention" if has_post_norms else "pre_mlp",
        "pre_feedforward_layernorm": "pre_mlp",
        "ln_2": "pre_mlp",
        "final_layer_norm": "pre_mlp",
        "post_feedforward_layernorm": "post_mlp",
    }
    if name not in roles:
        raise UnsupportedArchitecture(f"{path}.{name} is a norm of an unknown role.")
    return roles[name]
