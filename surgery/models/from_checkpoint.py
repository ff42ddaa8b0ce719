"""Loading a Hub id or a folder of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from analysis.files import check_folder, size_of
from surgery.errors import (
    CorruptFile,
    DoesNotFit,
    GatedModel,
    NoNetwork,
    NotACausalLanguageModel,
    QuantisedCheckpoint,
    RemoteCodeNeeded,
    UnknownModel,
    UnsupportedArchitecture,
    brief,
)
from surgery.folders.modeling import classes, family_of
from surgery.models.checks import (
    LENIENT,
    MOST_BLOCKS,
    TOO_LARGE,
    check_whole,
    configuration_error,
    exists,
    must_fit,
    needed_bytes,
)
from surgery.models.failures import Failure, anything, is_a, named, offline, out_of_memory, says
from surgery.models.room import refuse_large_download

HUB = (
    Failure(
        is_a(hub.HFValidationError),
        UnknownModel,
        "{shown!r} is not a model id: use `default`, owner/name, a folder or a .gguf file.",
    ),
    Failure(
        is_a(hub.GatedRepoError),
        GatedModel,
        "{source} is gated: accept its licence at https://huggingface.co/{source} and set HF_TOKEN.",
    ),
    Failure(
        is_a(hub.RevisionNotFoundError),
        UnknownModel,
        "{source} has no revision {revision!r}: check the branch, tag or commit.",
    ),
    Failure(
        is_a(hub.RepositoryNotFoundError),
        UnknownModel,
        "There is no model {source!r} on the Hub (or it is private): check the spelling or set HF_TOKEN.",
    ),
    Failure(
        is_a(hub.LocalEntryNotFoundError),
        NoNetwork,
        "{source} is not in the local cache and the Hub does not answer: check the network.",
    ),
    Failure(
        is_a(hub.EntryNotFoundError),
        NotACausalLanguageModel,
        "{source} has no config.json, so it is not a transformers model: choose another.",
    ),
    Failure(
        is_a(hub.HTTPError, OSError),
        NoNetwork,
        "The Hub did not give {source} ({reason}): check the network and try again.",
    ),
)
"""What keeps a Hub id's configuration from being had."""
WEIGHTS = (
    Failure(is_a(SafetensorError), CorruptFile, "The weights of {source} are damaged ({reason}): download them again."),
    Failure(
        is_a(torch.OutOfMemoryError),
        DoesNotFit,
        "{source} does not fit on the accelerator: free some of its memory or choose a smaller model.",
    ),
    Failure(
        says("pytorch_model.bin", "does not appear to have a file named", "safetensors"),
        CorruptFile,
        "{source} has no whole set of safetensors weights (pickled weights are never loaded): "
        "convert it to safetensors.",
    ),
    Failure(out_of_memory, DoesNotFit, TOO_LARGE),
    Failure(offline, NoNetwork, "The weights of {source} could not be downloaded ({reason}): check the network."),
    Failure(anything, CorruptFile, "{source} could not be loaded ({reason}): download it again."),
)
"""What keeps weights from being loaded: absent, only pickled, damaged, or too large."""
TOKENIZER = (
    Failure(
        says("trust_remote_code"),
        RemoteCodeNeeded,
        "The tokenizer of {source} needs Python code of its own: read that code, and allow it with "
        "trust_remote_code if you trust it.",
    ),
    Failure(offline, NoNetwork, "The tokenizer of {source} could not be downloaded ({reason}): check the network."),
    Failure(
        anything,
        CorruptFile,
        "The tokenizer of {source} is absent or damaged ({reason}): put the original tokenizer.json beside it.",
    ),
)
"""What keeps a tokenizer from being loaded: its code is not run, the network is gone, or files absent or damaged."""
CONFIGURATION = (
    Failure(
        lambda said: said.quantisation is not None,
        QuantisedCheckpoint,
        "{source} is quantised ({said.quantisation}): load the original, unquantised checkpoint, or a GGUF file of it.",
    ),
    Failure(
        lambda said: not said.well_formed,
        CorruptFile,
        "config.json of {source} names no model type: take the file of the original checkpoint.",
    ),
    Failure(
        lambda said: said.own_code and not said.known and not said.trusted,
        RemoteCodeNeeded,
        "{source} needs Python code of its own: read that code, and allow it with trust_remote_code if you trust it.",
    ),
    Failure(
        lambda said: said.causal and not said.known and not said.own_code,
        UnsupportedArchitecture,
        "{source} is of the type {said.short_type!r}, which transformers {version} does not know: "
        "choose a model of another type.",
    ),
    Failure(
        lambda said: (said.class_names and not said.causal) or (not said.known and not said.own_code),
        NotACausalLanguageModel,
        "{source} is not a causal language model ({said.classes:.120}): choose one that generates text.",
    ),
)
"""What a configuration can announce that makes a checkpoint unfit, before any of it is loaded."""


def located(source: str, revision: str | None) -> str:
    """The source itself if it is a directory or a Hub id whose configuration can be had; else a named error."""
    path = Path(source)
    if exists(path.is_dir):
        check_folder(path)
        if not (path / "config.json").is_file():
            raise UnknownModel(
                f"The folder {source[:200]!r} has no config.json: give the folder that save_pretrained wrote."
            )
        return source
    size_of(path)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source:
        raise UnknownModel(f"There is no folder {source[:200]!r}: check the path.")
    import huggingface_hub

    try:
        huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
    except Exception as error:
        words = {"source": source, "shown": source[:100], "revision": revision, "reason": brief(error)}
        raise (named(HUB, error, **words) or error) from None
    refuse_large_download(source, revision)
    return source


def load_checkpoint(source: str, revision: str | None, trust_remote_code: bool, gpu: bool) -> tuple[Any, Any]:
    """A Hub id's or folder's model and tokenizer. Raises InputError: of the class that names what is wrong."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configuration(source, revision, trust_remote_code)
    placement = _placement(needed_bytes(source, config, trust_remote_code), gpu)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        model_class: Any = AutoModelForCausalLM
        family = family_of(config)
        if family is not None:
            model_class = classes(family)[1]
        model, info = model_class.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **LENIENT, **placement, **common
        )
    except Exception as error:  # a damaged file can raise anything
        raise (named(WEIGHTS, error, source=source, reason=brief(error)) or error) from None
    check_whole(source, info)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **common)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise tokenizer_error(source, error) from None
    return model, tokenizer


def tokenizer_error(source: str, error: Exception) -> Exception:
    """Name what kept a tokenizer from being loaded."""
    return named(TOKENIZER, error, source=source, reason=brief(error)) or error


@dataclass(frozen=True)
class _Announced:
    """What a checkpoint's config.json says of it."""

    quantisation: str | None
    """Name of the method, if it is quantised."""
    model_type: Any
    class_names: Any
    base: str | None
    """The type that a checkpoint of this tool is made from."""
    known: bool
    """Whether transformers has a causal language model of that type."""
    own_code: bool
    trusted: bool
    """Whether the checkpoint's own code may be run."""

    @classmethod
    def read(cls, raw: dict[str, Any], trusted: bool) -> _Announced:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        quantised, model_type = raw.get("quantization_config"), raw.get("model_type")
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        base = family_of(raw)
        kind = base or model_type
        known = isinstance(kind, str) and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return cls(
            str(method)[:40] if quantised else None,
            model_type,
            raw.get("architectures") or [],
            base,
            known,
            "auto_map" in raw,
            trusted,
        )

    @property
    def well_formed(self) -> bool:
        return isinstance(self.model_type, str) and isinstance(self.class_names, list)

    @property
    def short_type(self) -> str:
        return str(self.model_type)[:60]

    @property
    def classes(self) -> str:
        return ", ".join(map(str, self.class_names)) or str(self.model_type)

    @property
    def causal(self) -> bool:
        """Whether a class that generates text is named."""
        return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in self.class_names)


def configuration(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The checkpoint's configuration, once it is known to be a loadable causal language model.

    Raises:
        InputError: of the class that names what is wrong.
    """
    import transformers

    raw = _raw_configuration(source, revision)
    said = _Announced.read(raw, trust_remote_code)
    refused = named(CONFIGURATION, said, source=source, said=said, version=transformers.__version__)
    if refused is not None:
        raise refused
    blocks = raw.get("num_hidden_layers")
    try:
        if isinstance(blocks, int) and blocks > MOST_BLOCKS:
            raise ValueError(f"{blocks} blocks")
        if said.base is not None:
            # A checkpoint of this tool: its modelling file is our own, so the copy that it carries is not run.
            return classes(said.base)[0].from_pretrained(source, revision=revision)
        return transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # every configuration class has errors of its own
        raise configuration_error(source, error) from None


def _raw_configuration(source: str, revision: str | None) -> dict[str, Any]:
    from transformers.utils import cached_file

    try:
        raw = json.loads(Path(cached_file(source, "config.json", revision=revision)).read_text("utf-8"))
    except (ValueError, RecursionError):
        raise CorruptFile(f"config.json of {source} is not valid JSON: download it again.") from None
    except OSError as error:
        raise CorruptFile(f"config.json of {source} cannot be read ({brief(error)}): download it again.") from None
    return raw if isinstance(raw, dict) else {}


def _placement(float32_bytes: int, gpu: bool) -> dict[str, Any]:
    """Device and type: float32 on the CPU; on a GPU its best type, spread by accelerate where one does not hold it."""
    if not (gpu and torch.cuda.is_available()):
        must_fit(float32_bytes)
        return {"dtype": torch.float32}
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    free = torch.cuda.mem_get_info()[0]
    return {"dtype": dtype, "device_map": "cuda" if float32_bytes // 2 < 0.8 * free else "auto"}
