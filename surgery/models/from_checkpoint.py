"""Loading a Hub id or a folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from surgery.errors import (
    CorruptFile,
    DoesNotFit,
    GatedModel,
    InputError,
    NoNetwork,
    NotACausalLanguageModel,
    QuantisedCheckpoint,
    RemoteCodeNeeded,
    UnknownModel,
    UnsupportedArchitecture,
)
from surgery.models.checks import (
    _LENIENT,
    MOST_BLOCKS,
    _brief,
    _check_whole,
    _configuration_error,
    _exists,
    _must_fit,
    _needed_bytes,
    _too_large,
)
from surgery.models.modeling import MODEL_TYPE, classes


def _located(source: str, revision: str | None) -> str:
    """The source itself if it is a directory or a Hub id whose configuration can be had; else a named error."""
    path = Path(source)
    if _exists(path.is_dir):
        if not (path / "config.json").is_file():
            raise UnknownModel(
                f"The folder {source[:200]!r} has no config.json: give the folder that save_pretrained wrote."
            )
        return source
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source:
        raise UnknownModel(f"There is no folder {source[:200]!r}: check the path.")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
    except errors.HFValidationError:
        raise UnknownModel(
            f"{source[:100]!r} is not a model id: use `default`, owner/name, a folder or a .gguf file."
        ) from None
    except errors.GatedRepoError:
        raise GatedModel(
            f"{source} is gated: accept its licence at https://huggingface.co/{source} and set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise UnknownModel(f"{source} has no revision {revision!r}: check the branch, tag or commit.") from None
    except errors.RepositoryNotFoundError:
        raise UnknownModel(
            f"There is no model {source!r} on the Hub (or it is private): check the spelling or set HF_TOKEN."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise NoNetwork(f"{source} is not in the local cache and the Hub does not answer: check the network.") from None
    except errors.EntryNotFoundError:
        raise NotACausalLanguageModel(
            f"{source} has no config.json, so it is not a transformers model: choose another."
        ) from None
    except (errors.HTTPError, OSError) as error:
        raise NoNetwork(f"The Hub did not give {source} ({_brief(error)}): check the network and try again.") from None
    return source


def _load_checkpoint(source: str, revision: str | None, trust_remote_code: bool, gpu: bool) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _configuration(source, revision, trust_remote_code)
    placement = _placement(_needed_bytes(source, config, trust_remote_code), gpu)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        model_class: Any = AutoModelForCausalLM
        if config.model_type == MODEL_TYPE:
            model_class = classes(config.base_model_type)[1]
        model, info = model_class.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **_LENIENT, **placement, **common
        )
    except SafetensorError as error:
        raise CorruptFile(f"The weights of {source} are damaged ({_brief(error)}): download them again.") from None
    except torch.OutOfMemoryError:
        raise DoesNotFit(
            f"{source} does not fit on the accelerator: free some of its memory or choose a smaller model."
        ) from None
    except MemoryError:
        raise _too_large(source) from None
    except Exception as error:  # a damaged file can raise anything
        raise _checkpoint_error(source, error) from None
    _check_whole(source, info)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **common)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise _tokenizer_error(source, error) from None
    return model, tokenizer


def _configuration(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The checkpoint's configuration, once it is known to be a loadable causal language model."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import cached_file

    try:
        raw = json.loads(Path(cached_file(source, "config.json", revision=revision)).read_text("utf-8"))
    except (ValueError, RecursionError):
        raise CorruptFile(f"config.json of {source} is not valid JSON: download it again.") from None
    except OSError as error:
        raise CorruptFile(f"config.json of {source} cannot be read ({_brief(error)}): download it again.") from None
    raw = raw if isinstance(raw, dict) else {}
    quantisation = raw.get("quantization_config")
    if quantisation:
        method = str(quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else quantisation)
        raise QuantisedCheckpoint(
            f"{source} is quantised ({method[:40]}): load the original, unquantised checkpoint, or a GGUF file of it."
        )
    model_type, class_names = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(model_type, str) or not isinstance(class_names, list):
        raise CorruptFile(f"config.json of {source} names no model type: take the file of the original checkpoint.")
    base = raw.get("base_model_type") if model_type == MODEL_TYPE else None
    known = (base if isinstance(base, str) else model_type) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if "auto_map" in raw and not known and not trust_remote_code:
        raise RemoteCodeNeeded(
            f"{source} needs Python code of its own: read that code, and allow it with trust_remote_code "
            "if you trust it."
        )
    causal = [name for name in class_names if str(name).endswith(("ForCausalLM", "LMHeadModel"))]
    if causal and not known and "auto_map" not in raw:
        raise UnsupportedArchitecture(
            f"{source} is of the type {model_type[:60]!r}, which transformers {transformers.__version__} does not "
            "know: choose a model of another type."
        )
    if (class_names and not causal) or (not known and "auto_map" not in raw):
        shown = ", ".join(map(str, class_names)) or model_type
        raise NotACausalLanguageModel(
            f"{source} is not a causal language model ({shown[:120]}): choose one that generates text."
        )
    blocks = raw.get("num_hidden_layers")
    try:
        if isinstance(blocks, int) and blocks > MOST_BLOCKS:
            raise ValueError(f"{blocks} blocks")
        if isinstance(base, str):
            # A checkpoint of this tool: its modelling file is our own, so the copy that it carries is not run.
            return classes(base)[0].from_pretrained(source, revision=revision)
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # every configuration class has errors of its own
        raise _configuration_error(source, error) from None


def _tokenizer_error(source: str, error: Exception) -> InputError:
    """Name the tokenizer's error: its code is not run, the network is gone, or its files are absent or damaged."""
    if "trust_remote_code" in str(error):
        return RemoteCodeNeeded(
            f"The tokenizer of {source} needs Python code of its own: read that code, and allow it with "
            "trust_remote_code if you trust it."
        )
    if _is_offline(error):
        return NoNetwork(f"The tokenizer of {source} could not be downloaded ({_brief(error)}): check the network.")
    return CorruptFile(
        f"The tokenizer of {source} is absent or damaged ({_brief(error)}): put the original tokenizer.json beside it."
    )


def _is_offline(error: Exception) -> bool:
    text = str(error).lower()
    return "connect" in text or "offline" in text


def _checkpoint_error(source: str, error: Exception) -> InputError:
    """Name the library's error: the weights are absent, only pickled, or damaged."""
    text = str(error)
    if "pytorch_model.bin" in text or "does not appear to have a file named" in text or "safetensors" in text:
        return CorruptFile(
            f"{source} has no whole set of safetensors weights (pickled weights are never loaded): "
            "convert it to safetensors."
        )
    if "allocate memory" in text:
        return _too_large(source)
    if _is_offline(error):
        return NoNetwork(f"The weights of {source} could not be downloaded ({_brief(error)}): check the network.")
    return CorruptFile(f"{source} could not be loaded ({_brief(error)}): download it again.")


def _placement(float32_bytes: int, gpu: bool) -> dict[str, Any]:
    """Device and type: float32 on the CPU; on a GPU its best type, spread by accelerate where one does not hold it."""
    if not (gpu and torch.cuda.is_available()):
        _must_fit(float32_bytes)
        return {"dtype": torch.float32}
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    free = torch.cuda.mem_get_info()[0]
    return {"dtype": dtype, "device_map": "cuda" if float32_bytes // 2 < 0.8 * free else "auto"}
