"""Whether a disk can hold the weights of a Hub model, asked before they are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.common.files import refuse_without_room
from surgery.folders.folder import INDEX, SINGLE

PATIENCE = 5.0
"""Seconds that the Hub has for its answer."""


def refuse_large_download(source: str, revision: str | None, api: Any = None) -> None:
    """Refuse a Hub model whose weights the disk of the Hub's cache has no room for.

    What is cached needs no room. Where the Hub does not answer nothing is refused: fetching says why it failed.

    Args:
        source: owner/name.
        api: an `huggingface_hub.HfApi`, for another endpoint.

    Raises:
        InputError: the disk cannot hold them.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if any(isinstance(_cached(source, name, revision), str) for name in (SINGLE, INDEX)):
        return
    try:
        hub = api or huggingface_hub.HfApi()
        found = hub.model_info(source, revision=revision, files_metadata=True, timeout=PATIENCE).siblings or []
    except Exception:  # the library raises many kinds
        return
    sizes = {file.rfilename: file.size or 0 for file in found}
    shards = {name: size for name, size in sizes.items() if name.startswith("model-") and name.endswith(".safetensors")}
    needed = sizes.get(SINGLE) or sum(shards.values())
    refuse_without_room(Path(constants.HF_HUB_CACHE), needed, f"Downloading {source}")


def _cached(source: str, name: str, revision: str | None) -> Any:
    import huggingface_hub

    return huggingface_hub.try_to_load_from_cache(source, name, revision=revision)
