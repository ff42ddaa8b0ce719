"""Loading a model: the embedded one, a Hub id, a directory, a GGUF file. Never a pickle, never the model's own code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from analysis.architecture import Architecture
from analysis.describe import describe
from surgery import embedded
from surgery.checkpoint_model import MODEL_TYPE, classes
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

DEFAULT = "default"
MOST_BLOCKS = 2000
"""More blocks than any model has; a damaged count would keep transformers busy for hours."""
Progress = Callable[[float, str], None]
_LENIENT = {"ignore_mismatched_sizes": True}
"""Tensors of another shape are reported beside the missing ones instead of raised; both are refused here."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, shared and read-only."""

    id: str
    revision: str | None
    model: nn.Module
    tokenizer: Any
    architecture: Architecture
    fingerprint: str
    note: str = ""
    """What a person should know of its numbers."""


def load(
    source: str,
    revision: str | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    gpu: bool = True,
) -> Loaded:
    """Load a causal language model for inspection and surgery.

    Args:
        source: `default`, a Hub id, a directory or a .gguf file.
        revision: branch, tag or commit, for a Hub id.
        progress: told what is being done.
        trust_remote_code: run the checkpoint's own Python code; off unless the user asks.
        gpu: whether a GPU may be used, if there is one.

    Raises:
        InputError: one of its subclasses says what is wrong and what to do.
        UnsupportedArchitecture: loaded, but not of a structure that can be mapped.
    """
    report = progress or (lambda fraction, message: None)
    with quiet():
        if source == DEFAULT:
            folder = embedded.directory(progress)
            report(0.5, "Loading the embedded model")
            model, tokenizer = _load_checkpoint(str(folder), None, False, gpu)
            note = "Its weights were rounded to 4 bits once already (Q4_1), before they came here."
        elif source.lower().endswith(".gguf"):
            report(0.1, "Converting the GGUF file")
            model, tokenizer = load_gguf(Path(source))
            note = "Its weights come from a GGUF file, turned back into floating point."
        else:
            report(0.1, f"Loading {source}")
            model, tokenizer = _load_checkpoint(_located(source, revision), revision, trust_remote_code, gpu)
            note = ""
    model.eval().requires_grad_(False)
    architecture = describe(model)
    report(1.0, "Loaded")
    return Loaded(source, revision, model, tokenizer, architecture, fingerprint(model), note)


def load_empty(folder: Path) -> tuple[Any, Any]:
    """The model of a folder's configuration, on torch's meta device, and its tokenizer. Nothing from there is run.

    Args:
        folder: with config.json and the tokenizer's files; its weights, if it has any, are not read.

    Raises:
        InputError: a file is absent or damaged, or there is no memory for the model's weights in float32.
    """
    from transformers import AutoTokenizer

    source = str(folder)
    with quiet():
        config = _configuration(source, None, False)
        model = _empty(source, config, False)
        _must_fit(_float32_bytes(model))
        try:
            return model.eval(), AutoTokenizer.from_pretrained(source, config=config)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise _tokenizer_error(source, error) from None


def load_gguf(path: Path) -> tuple[Any, Any]:
    """A model and tokenizer from a GGUF file, dequantised to float32.

    Raises:
        UnknownModel: no such file.
        CorruptFile: not a whole GGUF file of a causal language model that transformers knows.
    """
    import gguf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not _exists(path.is_file):
        raise UnknownModel(f"There is no file {str(path)[:200]!r}: check the path.")
    arguments = {"gguf_file": path.name}
    try:
        tensors = gguf.GGUFReader(path).tensors
        held = 4 * sum(int(tensor.n_elements) for tensor in tensors)
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        raise CorruptFile(f"{path.name} is not a whole GGUF file ({_brief(error)}): download it again.") from None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(path.parent), **arguments)
    except Exception as error:  # as above, and architectures that transformers does not know
        raise _gguf_error(path, error) from None
    if getattr(config, "num_hidden_layers", 0) > len(tensors):
        raise CorruptFile(f"{path.name} announces blocks that it does not hold: download it again.")
    needed = _needed_bytes(path.name, config, False)
    if needed > 2 * held:
        raise CorruptFile(f"{path.name} announces larger tensors than it holds: download it again.")
    _must_fit(needed)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), dtype=torch.float32, output_loading_info=True, **_LENIENT, **arguments
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **arguments)
    except MemoryError:
        raise _too_large(path.name) from None
    except Exception as error:  # as above
        raise _gguf_error(path, error) from None
    _check_whole(path.name, info)
    # The weights are ordinary floats now; these marks would make save_pretrained refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model, tokenizer


def _gguf_error(path: Path, error: Exception) -> InputError:
    return CorruptFile(f"transformers cannot read the GGUF file {path.name} ({_brief(error)}): choose another file.")


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


def _check_whole(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint with absent or misshapen tensors, which transformers would fill with random numbers."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    names = sorted(str(key) for key in (*info["missing_keys"], *mismatched))
    if names:
        raise CorruptFile(
            f"{name} lacks {len(names)} tensors, or holds them in another shape ({names[0]} first): download it again."
        )


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


def _configuration_error(source: str, error: Exception) -> InputError:
    return CorruptFile(f"The configuration of {source} cannot be used ({_brief(error)}): download the model again.")


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


def _too_large(name: str) -> DoesNotFit:
    return DoesNotFit(f"{name} does not fit in memory: close other programs or choose a smaller model.")


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


def _needed_bytes(source: str, config: Any, trust_remote_code: bool) -> int:
    """Bytes of the weights in float32, from an empty model on the meta device."""
    return _float32_bytes(_empty(source, config, trust_remote_code))


def _float32_bytes(model: nn.Module) -> int:
    return 4 * sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())


def _empty(source: str, config: Any, trust_remote_code: bool) -> Any:
    """A model on the meta device."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            if config.model_type == MODEL_TYPE:
                return classes(config.base_model_type)[1](config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # impossible sizes, unknown activations and the like
        raise _configuration_error(source, error) from None


def _placement(float32_bytes: int, gpu: bool) -> dict[str, Any]:
    """Device and type: float32 on the CPU; on a GPU its best type, spread by accelerate where one does not hold it."""
    if not (gpu and torch.cuda.is_available()):
        _must_fit(float32_bytes)
        return {"dtype": torch.float32}
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    free = torch.cuda.mem_get_info()[0]
    return {"dtype": dtype, "device_map": "cuda" if float32_bytes // 2 < 0.8 * free else "auto"}


def _must_fit(needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise DoesNotFit(
            f"The model needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            "close other programs or choose a smaller model."
        )


def fingerprint(model: nn.Module) -> str:
    """Identity of a model's weights: SHA-256 over names, shapes and 64 values of each tensor, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _brief(error: Exception) -> str:
    """What an error says, in one short line."""
    return " ".join(str(error).split())[:160].rstrip(" .:") or type(error).__name__


def _exists(check: Callable[[], bool]) -> bool:
    """`Path.is_file` and `Path.is_dir` raise for a name that is too long or a folder that may not be entered."""
    try:
        return check()
    except OSError:
        return False


CHATTY = ("torchao", "torch.utils._pytree", "torch._inductor")
"""Loggers that warn, when transformers imports torchao, of kernels for other machines."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and warnings do not belong into a command's output."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
