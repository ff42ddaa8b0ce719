"""Where a loaded model comes from and under which licence, as far as its own card says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.checkpoints.mergekit import EMBEDDED_ID
from surgery.models.loading import DEFAULT, Loaded
from surgery.shipping.record import Origin

CARD = "README.md"


def origin_of(loaded: Loaded) -> Origin:
    """Name, Hub id and licence of a loaded model.

    The card of a Hub model is taken from the local cache or asked of the Hub; where neither has one that can be read,
    the licence stays unknown. A folder's own card says which base it is made from.
    """
    if loaded.id == DEFAULT:
        name = EMBEDDED_ID.partition("/")[2]
        return Origin(name=name, base_model=EMBEDDED_ID, licence="apache-2.0", note=loaded.note)
    place = Path(loaded.id)
    local = place.is_dir() or loaded.id.lower().endswith(".gguf")
    card = place / CARD if place.is_dir() else None if local else _hub_card(loaded.id, loaded.revision)
    data = _front_matter(card)
    base = data.get("base_model") if local else loaded.id
    return Origin(
        name=place.name[:500] or "model",
        base_model=_text(base, 500),
        revision=None if local else loaded.revision,
        licence=_text(data.get("license"), 200),
        licence_name=_text(data.get("license_name"), 200),
        licence_link=_text(data.get("license_link"), 1000),
        note=loaded.note,
    )


def _hub_card(name: str, revision: str | None) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(name, CARD, revision=revision))
    except (errors.HTTPError, errors.HFValidationError, OSError):  # no card, or no network
        return None


def _front_matter(card: Path | None) -> dict[str, Any]:
    """The YAML block of a card; empty where there is none, or none that can be read."""
    if card is None or not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # whatever a broken card makes of YAML
        return {}


def _text(value: Any, longest: int) -> str | None:
    """A short string, or nothing: cards hold lists and worse."""
    return value if isinstance(value, str) and 0 < len(value) <= longest else None
