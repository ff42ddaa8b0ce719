"""A shipped folder as one file to take away, in a temporary folder that goes when nobody holds it any more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery.common.files import disk_errors, zip_folder
from surgery.common.progress import Report
from surgery.shipping.download import Download
from surgery.shipping.ship_folder import Shipped


@dataclass(frozen=True)
class Shipment:
    """A shipped folder that can be taken away."""

    zip: Path
    bytes: int
    """Of the zip file."""
    recipe: str
    """Key of the recipe that it was made from: what ships may say in its own how it is stored."""
    shipped: Shipped
    repository: str = ""
    """Address on the Hub, once it is there."""


class ShippingDownload(Download):
    """A folder of its own for one shipment, deleted like any `Download`."""

    shipment: Shipment | None = None
    """Set when everything is complete."""


def pack_shipment(shipped: Shipped, recipe: str, report: Report) -> Shipment:
    """Put a shipped folder into one zip file beside it. Raises InputError: the disk is full."""
    path = shipped.path.with_name(f"{shipped.path.name}.zip")
    with disk_errors("The zip file cannot be written", "free some space"):
        zip_folder(shipped.path, path, lambda share: report(share, "Packing the files"))
    return Shipment(path, path.stat().st_size, recipe, shipped)
