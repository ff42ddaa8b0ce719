"""Loading a Hub id or a folder of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from analysis.files import size_of
from surgery.common.failure import out_of_memory
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
from surgery.folders.files import CheckpointFiles
from surgery.folders.folder import INDEX, SINGLE, Folder
from surgery.folders.modeling import classes, family_of
from surgery.models.checks import LENIENT, TOO_LARGE, check_whole, exists, float32_bytes, must_fit
from surgery.models.failures import Failure, anything, is_a, named, offline, says
from surgery.models.room import refuse_large_download
from surgery.models.source import Source, homeless, understand
from surgery.models.tokenizer import open_tokenizer

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
ADAPTER = "adapter_config.json"
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""What is downloaded of a Hub id before its weights."""
QUANTISED_BY = ("quantization_config", "compression_config", "quantization")
"""Settings under which transformers, compressed-tensors and MLX say how weights are quantised."""
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
        lambda said: said.wrapped and not said.causal,
        UnsupportedArchitecture,
        "{source} is a model of text and images or sound ({said.classes:.120}), whose text model cannot be opened by "
        "itself yet: choose a checkpoint of the text model alone.",
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


def located(source: str, revision: str | None, trusted: bool = False) -> Folder:
    """The folder of a model: the source itself if it is a directory, else the small files of that Hub id.

    Args:
        trusted: whether the model's own code is fetched with them.

    Raises:
        InputError: of the class that names what is wrong.
    """
    path = Path(source)
    if exists(path.is_dir):
        if (path / ADAPTER).is_file():
            raise NotACausalLanguageModel(
                f"The folder {source[:200]!r} is an adapter of {_base_of(Folder(path))[:100]!r} and no whole model: "
                "merge it into that model first (PEFT's merge_and_unload), and give the folder of the result."
            )
        if not (path / "config.json").is_file():
            raise UnknownModel(
                f"The folder {source[:200]!r} has no config.json: give the folder that save_pretrained wrote."
            )
        return Folder(path, source)
    size_of(path)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or "\\" in source:
        raise UnknownModel(f"There is no folder {source[:200]!r}: check the path.")
    import huggingface_hub

    try:
        huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
        patterns = [*SMALL_FILES, *(["*.py"] if trusted else [])]
        place = huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=patterns)
        return Folder(Path(place), source, remote=True)
    except Exception as error:
        words = {"source": source, "shown": source[:100], "revision": revision, "reason": brief(error)}
        raise (named(HUB, error, **words) or error) from None


def _base_of(folder: Folder) -> str:
    return str(folder.json(ADAPTER).get("base_model_name_or_path"))


def _fetch_weights(folder: Folder, revision: str | None) -> None:
    """Download the safetensors weights of a Hub id into its folder: the single file, or those that the index names."""
    import huggingface_hub

    try:
        try:
            huggingface_hub.hf_hub_download(folder.name, SINGLE, revision=revision)
        except hub.EntryNotFoundError:
            for file in sorted(set(folder.settings(INDEX).get("weight_map", {}).values())):
                huggingface_hub.hf_hub_download(folder.name, file, revision=revision)
    except Exception as error:
        raise (named(WEIGHTS, error, source=folder.name, reason=brief(error)) or error) from None


def load_checkpoint(folder: Folder, revision: str | None, trusted: bool, gpu: bool) -> tuple[Any, Any, Source]:
    """The model and the tokenizer of a folder, and what its files say. Raises InputError: which names what is wrong."""
    from transformers import AutoModelForCausalLM

    if folder.remote:
        refuse_large_download(folder.name, revision)
        must_fit(float32_bytes(understood(folder, trusted, weights=False).empty))
        _fetch_weights(folder, revision)
    source = understood(folder, trusted)
    placement = _placement(float32_bytes(source.empty), source.dtype, gpu)
    source.check_held()
    try:
        model_class: Any = AutoModelForCausalLM
        family = family_of(source.config)
        if family is not None:
            model_class = classes(family)[1]
        model, info = model_class.from_pretrained(
            str(folder.directory),
            config=source.config,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trusted,
            **LENIENT,
            **placement,
        )
    except Exception as error:  # a damaged file can raise anything
        raise (named(WEIGHTS, error, source=folder.name, reason=brief(error)) or error) from None
    check_whole(folder.name, info)
    if source.converted and info["unexpected_keys"]:
        raise homeless(folder.name, min(info["unexpected_keys"]))
    return model, folder_tokenizer(source), source


def folder_tokenizer(source: Source) -> Any:
    """The tokenizer of a folder that is understood. Raises InputError: it is absent, damaged or has code of its own."""
    folder = source.folder
    settings = folder.settings("tokenizer_config.json")
    return open_tokenizer(folder.directory, folder.name, source.config, settings, source.trusted)


def understood_files(directory: Path) -> CheckpointFiles:
    """The files of a checkpoint folder, once they are understood as they are for loading.

    Raises:
        InputError: of the class that names what is wrong.
    """
    files = CheckpointFiles(directory)
    source = understood(files)
    source.check_held()
    files.config |= source.changes
    return files


def quantisation_of(raw: dict[str, Any]) -> str | None:
    """The method by which a config.json says that its weights are quantised; None where they are plain.

    compressed-tensors calls a format `dense` that holds plain weights (2:4 sparse models were published so).
    """
    for given in filter(None, map(raw.get, QUANTISED_BY)):
        if not isinstance(given, dict):
            return str(given)[:40]
        forms = (given.get("format"), (given.get("sparsity_config") or {}).get("format", "dense"))
        if forms != ("dense", "dense"):
            return str(given.get("quant_method", "unknown"))[:40]
    return None


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
    wrapped: bool
    """Whether its text model stands inside a model of text and images or sound."""

    @classmethod
    def read(cls, raw: dict[str, Any], trusted: bool) -> _Announced:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        quantised, model_type = quantisation_of(raw), raw.get("model_type")
        base = family_of(raw)
        kind = base or model_type
        known = isinstance(kind, str) and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        return cls(
            quantised,
            model_type,
            raw.get("architectures") or [],
            base,
            known,
            "auto_map" in raw,
            trusted,
            isinstance(raw.get("text_config"), dict),
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


def understood(folder: Folder, trusted: bool = False, weights: bool = True) -> Source:
    """What a folder's files say, once it is known to be a causal language model all of whose settings are understood.

    Args:
        trusted: whether its own code may be run.
        weights: whether the headers of its weights are read, where it has any.

    Raises:
        InputError: of the class that names what is wrong.
    """
    import transformers

    raw = folder.json("config.json")
    said = _Announced.read(raw, trusted)
    refused = named(CONFIGURATION, said, source=folder.name, said=said, version=transformers.__version__)
    if refused is not None:
        raise refused
    plain = {name: value for name, value in raw.items() if name not in QUANTISED_BY}
    return understand(folder, plain, str(said.base or said.model_type), said.base is not None, trusted, weights)


def _placement(float32_bytes: int, stored: torch.dtype, gpu: bool) -> dict[str, Any]:
    """Device and type: float32 on the CPU; on a GPU the type of the files, spread where one GPU does not hold it."""
    if not (gpu and torch.cuda.is_available()):
        must_fit(float32_bytes)
        return {"dtype": torch.float32}
    dtype = torch.float32 if stored == torch.bfloat16 and not torch.cuda.is_bf16_supported() else stored
    free = torch.cuda.mem_get_info()[0]
    needed = float32_bytes * dtype.itemsize // 4
    return {"dtype": dtype, "device_map": "cuda" if needed < 0.8 * free else "auto"}
