"""Loading a GGUF file: a model of transformers with its weights, and its tokenizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.files import size_of
from analysis.model.architecture import Architecture
from analysis.model.describe import describe
from surgery.common.failure import out_of_memory
from surgery.errors import CorruptFile, DoesNotFit, InputError, UnknownModel, UnsupportedArchitecture, brief
from surgery.folders.files import PlannedCheckpoint
from surgery.folders.modeling import classes
from surgery.gguf.header import GgufFile, open_gguf
from surgery.gguf.keys import Keys
from surgery.gguf.plan import GgufPlan
from surgery.gguf.read import check_shapes, restored
from surgery.gguf.sampling import SETTINGS
from surgery.gguf.source import Source, read_source
from surgery.gguf.source_rope import FACTORS
from surgery.gguf.source_tokenizer import SourceTokenizer, source_tokenizer
from surgery.models.checks import TOO_LARGE, configuration_error, empty, float32_bytes, must_fit, quiet
from surgery.models.failures import Failure, anything, named
from surgery.models.places import places

GGUF = (
    Failure(out_of_memory, DoesNotFit, TOO_LARGE),
    Failure(anything, CorruptFile, "The GGUF file {source} cannot be read ({reason}): choose another file."),
)
HEAD = "output.weight"
LLAMAS = {"llama", "deci"}
"""Architectures that compute the same where all blocks are alike."""


def load_gguf(path: Path) -> tuple[Any, Any]:
    """A model and tokenizer from a GGUF file, dequantised to float32.

    Every key and every tensor of the file is used, or is known to be of no effect, see `surgery.gguf.keys`.

    Raises:
        UnknownModel: no such file.
        CorruptFile: not a whole GGUF file.
        UnsupportedArchitecture: something in the file is not understood; the message names it.
        DoesNotFit: too large for the free memory.
    """
    if size_of(path) is None:
        raise UnknownModel(f"There is no file {str(path)[:200]!r}: check the path.")
    file = open_gguf(path)
    try:
        with quiet():
            return _load(file, path)
    except InputError:
        raise
    except Exception as error:  # configuration classes and the tokenizers library raise whatever a value leads to
        raise (named(GGUF, error, source=path.name, reason=brief(error)) or error) from None


def _load(file: GgufFile, path: Path) -> tuple[Any, Any]:
    keys = Keys(file)
    source = read_source(file, keys)
    words = source_tokenizer(keys)
    blank = _blank(file, source, words)
    architecture = describe(blank)
    plan = plan_of(path.parent, blank, architecture)
    if plan.layout.architecture != keys.architecture and {plan.layout.architecture, keys.architecture} != LLAMAS:
        raise UnsupportedArchitecture(
            f"{file.name} has settings that llama.cpp computes as {plan.layout.architecture} and not as "
            f"{keys.architecture}, so they are not understood here: give the original checkpoint."
        )
    settings = _generation(keys, words)
    used = {tensor.name for tensor in plan.tensors} | {FACTORS} | ({HEAD} if source.copied_head else set())
    keys.close(used)
    lost = sorted({tensor.name for tensor in plan.tensors} - file.tensors.keys())
    if lost:
        others = f" and {len(lost) - 1} others" if lost[1:] else ""
        raise CorruptFile(f"{file.name} lacks the tensor {lost[0]}{others}: download it again.")
    check_shapes(file.name, file.tensors, plan, "its keys say: download it again.")
    must_fit(float32_bytes(blank))
    values = restored(file.tensors, plan)
    if source.copied_head:
        values.pop(HEAD, None)
    model = filled(values, plan, architecture, blank.config, type(blank))
    model.generation_config.update(**settings)
    return model, _tokenizer(words)


def _generation(keys: Keys, words: SourceTokenizer) -> dict[str, Any]:
    """Settings of generation: every token that ends an answer, and how the file advises to draw."""
    found: dict[str, Any] = {"eos_token_id": list(words.ends) if len(words.ends) > 1 else words.ids.get("eos")}
    for setting in SETTINGS:
        value = keys.raw(f"general.sampling.{setting.key}")
        if value is not None:
            found |= {setting.ours: value, "do_sample": True}
    return found if found.get("temperature", 1) else {"eos_token_id": found["eos_token_id"]}


def _blank(file: GgufFile, source: Source, words: SourceTokenizer) -> Any:
    """The model on the meta device, of the family's own class or, where blocks differ, of the one around it."""
    from transformers import CONFIG_MAPPING

    settings = source.config | {f"{name}_token_id": words.ids.get(name) for name in ("bos", "eos", "pad")}
    try:
        config = CONFIG_MAPPING[source.family_name](**settings)
        plain = empty(file.name, config, False)
        if not source.differing and not source.biases:
            return plain
        config_class, model_class = classes(source.family_name)
        where = places(describe(plain))
        biases = {str(number): [_LINEARS[role] for role in roles] for number, roles in source.biases.items()}
        settings |= {"base_model_type": source.family_name, "surgery": where | {"biases": biases}}
        with torch.device("meta"):
            return model_class(config_class(**settings, per_layer_config=source.differing))
    except InputError:
        raise
    except Exception as error:  # every configuration class has errors of its own
        raise configuration_error(file.name, error) from None


_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Where the linears are in a block of the families whose blocks may have biases of their own."""


def plan_of(folder: Path, blank: Any, architecture: Architecture) -> GgufPlan:
    """The file that would be written of a model on the meta device, with its tokenizer's files in that folder."""
    shapes = {name: tuple(tensor.shape) for name, tensor in blank.state_dict().items()}
    if architecture.tied:
        shapes.pop(f"{architecture.head}.weight", None)
    document = json.loads(blank.config.to_json_string(use_diff=False))
    return GgufPlan(PlannedCheckpoint(folder, document, shapes, plain=True))


def _tokenizer(words: SourceTokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    special = {f"{name}_token": token for name, token in words.special.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=words.backend, **special)
    made.chat_template = words.chat_template
    return made


def filled(
    values: dict[str, np.ndarray], plan: GgufPlan, architecture: Architecture, config: Any, model_class: Any
) -> Any:
    """A model of transformers in float32 with the weights that `read_tensors` gave; `config` is not changed."""
    inner = (tensor for tensor in plan.tensors if tensor.name in values and tensor.name != HEAD)
    parts = (part for tensor in inner for part in tensor.split(values[tensor.name]).items())
    state = {source: torch.from_numpy(array) for source, array in parts}
    config, head = copy.deepcopy(config), f"{architecture.head}.weight"
    if HEAD in values:
        state[head] = torch.from_numpy(values[HEAD])
        config.tie_word_embeddings = False
    elif architecture.tied:
        state[head] = state[f"{architecture.embeddings}.weight"]
    with quiet():
        made = model_class.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return made.eval().requires_grad_(False)
