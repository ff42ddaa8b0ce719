"""The accounting of a checkpoint folder: every setting and every tensor is used, known not to matter, or refused.

A setting counts as used if the model's configuration class declares it or takes it in, or the model's code reads it.
Where settings and tensors disagree about ties and biases, the tensors count; about sizes, the folder is refused.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from surgery.errors import CorruptFile, QuantisedCheckpoint, UnsupportedArchitecture
from surgery.folders.folder import Folder
from surgery.folders.modeling import classes
from surgery.folders.older_readers import older_entries
from surgery.models.checks import MOST_BLOCKS, configuration_error, empty

LARGEST_SIZE = 2**31
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
"""Settings that are whole numbers from 1 to `LARGEST_SIZE`."""
FLAGS = ("attention_bias", "mlp_bias")
"""Settings that only say which tensors there are: what the files hold counts."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number types of weights that are kept; F64 is read as float32."""
RUNS_CODE = (
    "auto_map", "attn_implementation", "experts_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_experts_implementation_internal", "custom_pipelines",
)  # fmt: skip
"""Settings that make transformers fetch or run code; taken out before it sees them."""
OUR_OWN = ("base_model_type", "surgery", "per_layer_config", "allow_global_per_layer_attribute_access")
"""Settings of a checkpoint of this tool, which its own class takes."""
UNUSED_SETTINGS = {
    "says where the files come from or what wrote them": (
        "_model_name_or_path", "_name_or_path", "architectures", "is_llama_config", "license", "model_name",
        "model_surgery_recipe", "model_type", "transformers_version", "transformers_weights", "unsloth_fixed",
        "unsloth_version",
    ),
    "belongs to training": (
        "gradient_checkpointing", "initializer_factor", "layer_init_scheme",
        "neftune_noise_alpha", "pretraining_tp", "z_loss_coefficient", "auxiliary_loss_weight", "rescale_every",
    ),
    "belongs to another task or another program": (
        "adapters", "finetuning_task", "id2label", "label2id", "n_special", "num_labels",
        "_num_labels", "predict_special_tokens", "prefix", "problem_type", "summary_activation",
        "summary_proj_to_labels", "summary_type", "summary_use_proj",
        "task_specific_params", "tf_legacy_loss", "torchscript", "transformers.js_config", "tokenizer_class",
        "use_bfloat16", "vocab_type", "rope_interleaved",
    ),
    "says how it is computed and not what": (
        "_attn_implementation_autoset", "_flash_attn_2_enabled", "cache_implementation", "fused_mlp", "use_flash_attn",
        "flash_attn", "fused_bias_fc", "fused_dropout_add_ln", "is_decoder", "output_past", "torch_dtype", "use_cache",
        "use_fused_cross_entropy", "use_fused_rms_norm", "use_fused_rope",
    ),
    "repeats another setting": (
        "_sliding_window_pattern", "max_sequence_length", "model_max_length", "n_ctx", "n_embed", "seq_length",
    ),
    "says which tensors there are, and these are compared": (
        "attention_bias", "enable_bias", "lm_head_bias", "mlp_bias", "qk_layernorm", "qkv_bias", "use_bias",
        "use_qkv_bias",
    ),
    "counts with a sliding window, for which there is another setting": ("max_window_layers",),
    "counts where something is padded or begun by a token of its own": ("sep_token_id", "decoder_start_token_id"),
}  # fmt: skip
"""Settings that no configuration class takes and that change no number, by the reason. A setting that is absent, false
or empty asks for nothing, and a factor of 1 neither."""
TRAINING = re.compile(r"(drop|dropout|_std|_dropout_prob|initializer_range)$")
"""Further settings of training, by the end of the name."""
FACTORS = ("factor", "mod", "multiplier", "scale", "scaling")
REASONS = {name: reason for reason, names in UNUSED_SETTINGS.items() for name in names}
ROPE_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})
"""Settings of a rotary encoding of any type; `finetuned` records a training."""
ROPE_SETTINGS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    }),
    "longrope": frozenset({
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
    }),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "proportional": frozenset({"factor"}),
}  # fmt: skip
"""What transformers reads of a rotary encoding, by its type."""
UNUSED_TENSORS = {
    r"rotary_emb\.inv_freq$": "rotary frequencies follow from the configuration",
    r"\.(attn|attention)\.(bias|masked_bias)$": "a causal mask follows from the length of the text",
    r"(^|\.)position_ids$": "positions are counted",
}
"""Tensors that old checkpoints hold and no model reads, by the end of the name, with the reason."""


@dataclass(frozen=True)
class Source:
    """A folder whose settings are all understood; `check_held` compares its tensors."""

    folder: Folder
    config: Any
    changes: dict[str, Any]
    """Settings that the tensors have corrected."""
    trusted: bool

    @cached_property
    def empty(self) -> Any:
        """The model on the meta device."""
        return empty(self.folder.name, self.config, self.trusted)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it, one sentence each."""
        return tuple(
            f"config.json says {name} {not value}, and the tensors say {value}: that counts."
            for name, value in self.changes.items()
        )

    @property
    def converted(self) -> bool:
        """Whether transformers gives the tensors other names and shapes as it loads them: it alone can compare them."""
        from transformers.conversion_mapping import get_model_conversion_mapping

        return self.trusted or bool(get_model_conversion_mapping(self.empty, add_legacy=False))

    @property
    def dtype(self) -> torch.dtype:
        """The number type that most of the weights are stored in; float32 where there are none."""
        sizes: dict[torch.dtype, int] = {torch.float32: 0}
        for stored in self.folder.tensors.values():
            kind = FLOATS.get(stored.dtype, torch.float32)
            sizes[kind] = sizes.get(kind, 0) + math.prod(stored.shape)
        return max(sizes, key=lambda kind: sizes[kind])

    def check_held(self) -> None:
        """Refuse tensors that the model has no place for, and places for which there is no tensor.

        Raises:
            CorruptFile: one is absent, of another shape or has no place.
            QuantisedCheckpoint: weights are not floating point.
        """
        if self.converted:
            return
        wanted = _wanted(self.empty)
        placed = _placed(self.folder, self.empty, wanted)
        for name, stored in self.folder.tensors.items():
            if _unused(name):
                continue
            if name not in placed:
                raise homeless(self.folder.name, name)
            if stored.dtype not in FLOATS and stored.dtype != "F64":
                raise QuantisedCheckpoint(
                    f"{self.folder.name} holds {name} as {stored.dtype}: load the original, unquantised checkpoint."
                )
            if stored.shape != wanted[placed[name]]:
                raise CorruptFile(
                    f"{self.folder.name} lacks {name} of the shape {list(wanted[placed[name]])} that its config.json "
                    f"says, and holds {list(stored.shape)}: download it again, or put the config.json right."
                )
        absent = sorted(set(wanted) - set(placed.values()) - _from_others(self.empty, set(placed.values())))
        if absent:
            raise CorruptFile(f"{self.folder.name} lacks {len(absent)} tensors ({absent[0]} first): download it again.")


def homeless(source: str, tensor: str) -> CorruptFile:
    """The error for a tensor that the model has no place for."""
    return CorruptFile(
        f"{source} holds {tensor}, for which its config.json has no place: take the config.json that belongs to these "
        "weights."
    )


def strange(source: str, setting: str, kind: str) -> UnsupportedArchitecture:
    """The error for a setting that nothing reads."""
    return UnsupportedArchitecture(
        f"{setting!r} in the config.json of {source} is not understood ({kind} has no such setting), so its numbers "
        "could be wrong: choose a model of a known kind, or remove the setting if it has no effect."
    )


def understand(
    folder: Folder, raw: dict[str, Any], kind: str, ours: bool, trusted: bool, weights: bool = True
) -> Source:
    """The configuration of a folder, once each of its settings is understood.

    Args:
        raw: config.json, without what says how it is quantised.
        kind: the model type; for a checkpoint of this tool the type that it is made from.
        ours: whether it is a checkpoint of this tool.
        trusted: whether the folder's own code may be run.
        weights: whether the headers of its weights are read, where it has any.

    Raises:
        CorruptFile: a setting has a value of a wrong kind, or the weights hold fewer blocks than it announces.
        UnsupportedArchitecture: a setting is not understood; the message names it.
    """
    from transformers import AutoConfig

    _check_numbers(folder, raw)
    if raw.get("per_layer_config") and not ours:  # transformers' own decoders pass over it without a word
        raise strange(folder.name, "per_layer_config", kind)
    try:
        if trusted and "auto_map" in raw and not ours:
            config = AutoConfig.from_pretrained(str(folder.directory), trust_remote_code=True)
            return Source(folder, config, {}, trusted)
        config = configuration_of(raw, kind, ours)
        _check_sizes(config)
    except Exception as error:  # every configuration class has errors of its own
        raise configuration_error(folder.name, error, _culprit(raw, kind, ours)) from None
    _check_settings(folder, raw, config, kind, ours)
    if not (weights and folder.has_weights):
        return Source(folder, config, {}, trusted)
    _check_blocks(folder, config)
    return _as_held(Source(folder, config, {}, trusted))


def configuration_of(raw: dict[str, Any], kind: str, ours: bool) -> Any:
    """The configuration object of a config.json, without what makes transformers fetch or run code.

    Args:
        raw: config.json.
        kind: the model type; for a checkpoint of this tool the type that it is made from.
        ours: whether it is a checkpoint of this tool: its modelling file is our own, and the copy in it is not run.
    """
    from transformers import CONFIG_MAPPING

    given = {name: copy.deepcopy(value) for name, value in raw.items() if name not in RUNS_CODE}
    return (classes(kind)[0] if ours else CONFIG_MAPPING[kind]).from_dict(given)


def _culprit(raw: dict[str, Any], kind: str, ours: bool) -> str:
    """The setting without which the configuration could be made; empty if that is no single one."""
    for name in raw:
        with contextlib.suppress(Exception):  # as above
            _check_sizes(configuration_of({other: raw[other] for other in raw if other != name}, kind, ours))
            return name
    return ""


def _check_numbers(folder: Folder, raw: dict[str, Any]) -> None:
    """Refuse what JSON itself does not have, and a number type that is no name."""
    for name, value in raw.items():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise CorruptFile(f"{name} in config.json of {folder.name} is not a finite number: put it right.")
    for name in ("dtype", "torch_dtype"):
        if not isinstance(raw.get(name, ""), str | None):
            raise CorruptFile(f"{name} in config.json of {folder.name} is not a name such as float32: put it right.")


def _check_sizes(config: Any) -> None:
    """Raise ValueError for a size that no model has."""
    for name in SIZES:
        value = getattr(config, name, None)
        if value is not None and not 1 <= value < LARGEST_SIZE:
            raise ValueError(f"{name} is {value:.6g}, which no model has")
    if config.num_hidden_layers > MOST_BLOCKS:
        raise ValueError(f"{config.num_hidden_layers} blocks")


def _check_settings(folder: Folder, given: dict[str, Any], config: Any, kind: str, ours: bool) -> None:
    """Refuse a setting that asks for something and that neither the model's classes nor the table know."""
    declared = set(config.__dataclass_fields__) | set(config.attribute_map) | set(config.attribute_map.values())
    declared |= {*RUNS_CODE, *REASONS, *(OUR_OWN if ours else ())}
    repeated = {
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_activation": getattr(config, "hidden_act", None),
        **older_entries(config),
    }
    for name, value in given.items():
        # What a class takes in under another name (a rotary base, say) is gone from its attributes.
        taken = name in declared or name not in vars(config)
        idle = not value or (value == 1 and name.endswith(FACTORS)) or value == repeated.get(name)
        if not (idle or taken or TRAINING.search(name) or _read_by_model(name, kind)):
            raise strange(folder.name, name, kind)
    rotary = getattr(config, "rope_parameters", None) or {}
    for one in (part for part in (rotary, *rotary.values()) if isinstance(part, dict) and "rope_type" in part):
        known = ROPE_SETTINGS.get(one["rope_type"])
        unread = [name for name, value in one.items() if value and name not in ROPE_ALWAYS | (known or set())]
        if known is None or unread:
            what = f"has {unread[0]!r}" if known is not None else f"is of the type {one['rope_type']!r}"
            raise UnsupportedArchitecture(
                f"The rotary encoding in the config.json of {folder.name} {what}, which is not understood: choose "
                "another model."
            )
        for name, value in one.items():
            if name in ("factor", "rope_theta") and not (isinstance(value, int | float) and value > 0):
                raise CorruptFile(f"{name} of the rotary encoding of {folder.name} is {value!r}: put it right.")


def _read_by_model(name: str, kind: str) -> bool:
    """Whether the code of the model or of its configuration reads a setting that the latter does not declare."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    config = CONFIG_MAPPING[kind]
    modules = (MODEL_FOR_CAUSAL_LM_MAPPING[config].__module__, config.__module__)
    code = "".join(inspect.getsource(sys.modules[module]) for module in modules)
    return re.search(rf"""(config\.|config, "|kwargs\.(get|pop)\("){re.escape(name)}\b""", code) is not None


def _check_blocks(folder: Folder, config: Any) -> None:
    """Refuse more blocks than there are tensors for, before a model of them is made."""
    numbered = (re.match(r"([^0-9]*)\.(\d+)\.", name) for name in folder.tensors)
    found = [(int(match[2]), match[1]) for match in numbered if match]
    last, path = max(found, default=(-1, "layers"))
    if config.num_hidden_layers > last + 1:
        raise CorruptFile(
            f"{folder.name} announces {config.num_hidden_layers:,} blocks and holds {last + 1:,} "
            f"({path}.{last + 1} is absent): download it again."
        )


def _as_held(source: Source) -> Source:
    """The same with ties and biases as the tensors have them."""
    if source.converted:
        return source
    changes = {name: value for name, value in _tie(source).items() if value != getattr(source.config, name)}
    best = _corrected(source, changes)
    for flag in FLAGS:
        now = getattr(source.config, flag, None)
        if isinstance(now, bool) and _disagreements(best):
            other = _corrected(source, changes | {flag: not now})
            if _disagreements(other) < _disagreements(best):
                changes, best = other.changes, other
    return best


def _corrected(source: Source, changes: dict[str, Any]) -> Source:
    if not changes:
        return source
    config = copy.deepcopy(source.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return Source(source.folder, config, changes, source.trusted)


def _disagreements(source: Source) -> int:
    """Tensors without a place and places without a tensor."""
    wanted = _wanted(source.empty)
    placed = _placed(source.folder, source.empty, wanted)
    homeless = [name for name in source.folder.tensors if name not in placed and not _unused(name)]
    have = set(placed.values())
    return len(homeless) + len(set(wanted) - have - _from_others(source.empty, have))


def _tie(source: Source) -> dict[str, bool]:
    """A head that differs from the embeddings is not tied to them, whatever the flag says."""
    if not getattr(source.config, "tie_word_embeddings", False):
        return {}
    for head, embeddings in _ties(source.empty):
        pair = [_held_as(source.folder, source.empty, name) for name in (head, embeddings)]
        if None not in pair and not _same(source.folder, *map(str, pair)):
            return {"tie_word_embeddings": False}
    return {}


def _ties(model: Any) -> list[tuple[str, str]]:
    tied = getattr(model, "_tied_weights_keys", None)
    return list(tied.items()) if isinstance(tied, dict) else []


def _held_as(folder: Folder, model: Any, place: str) -> str | None:
    """The name under which the folder holds a place of the model."""
    names = (place, place.removeprefix(f"{model.base_model_prefix}."))
    return next((name for name in names if name in folder.tensors), None)


def _same(folder: Folder, one: str, other: str) -> bool:
    first, second = folder.tensors[one], folder.tensors[other]
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    with folder.opened(first.file) as left, folder.opened(second.file) as right:
        return torch.equal(left.get_tensor(one), right.get_tensor(other))


def _wanted(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _placed(folder: Folder, model: Any, wanted: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The place in the model of every tensor that has one; files of a base model lack its prefix."""
    found = {}
    for name in folder.tensors:
        place = next((one for one in (name, f"{model.base_model_prefix}.{name}") if one in wanted), None)
        if place is not None:
            found[name] = place
    return found


def _from_others(model: Any, have: set[str]) -> set[str]:
    """Places that are tied to one that is held."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return {one for pair in _ties(model) if have & set(pair) for one in pair}


def _unused(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in UNUSED_TENSORS)
