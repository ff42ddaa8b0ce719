"""From a session's view to the words about what was shipped or built. Pure."""

from __future__ import annotations

from surgery.checkpoints.build import stored_dtype
from surgery.evaluation.estimate import perplexity_of
from surgery.session.view import View
from surgery.shipping.download import checkpoint_bytes
from surgery.shipping.record import Part
from surgery.shipping.shipment import Shipment
from surgery.shipping.verify import Difference
from ui.presenters.text import Html, bytes_text, count_text, download_text, note, notes, number_text, row, table

WHAT = (
    "Makes a folder with the model, its recipe, a model card with these numbers, checksums and a Modelfile for Ollama; "
    "reads every file back, and compares logits and perplexity with what was measured here."
)


def ship_text(view: View) -> Html:
    """What shipping does, or what the last shipment holds and how it was verified."""
    if view.model is None or view.history is None:
        return Html()
    shipment = view.ship
    if shipment is None:
        return note(WHAT)
    record = shipment.shipped.record
    old = "" if shipment.recipe == view.history.current.key else " It was made from an earlier recipe."
    lines = [f"Shipped and verified: {count_text(record.parameters)} parameters.{old}"]
    lines += list(shipment.shipped.notes)
    if shipment.repository:
        lines.append(f"Uploaded to {shipment.repository}.")
    return notes(lines) + _table(shipment) + _sums(shipment)


def _table(shipment: Shipment) -> Html:
    """A row for each form: its size, and what it gives when it is read back."""
    shipped = shipment.shipped
    pairs = zip(shipped.record.parts, shipped.verification.differences, strict=True)
    rows = (_row(part, difference) for part, difference in pairs)
    return table(("form", "size", "perplexity", "read back", "logits differ by"), rows, "ms-refits ms-shipped")


def _row(part: Part, difference: Difference) -> Html:
    form = f"{'Checkpoint' if part.kind == 'checkpoint' else 'GGUF'}, {part.type}"
    return row(
        form,
        bytes_text(part.bytes),
        number_text(perplexity_of(difference.recorded_nll)),
        number_text(perplexity_of(difference.nll)),
        f"{100 * difference.logits_max_relative:.2g}%",
    )


def _sums(shipment: Shipment) -> Html:
    """SHA-256 of every file, folded away."""
    sums = shipment.shipped.verification.sums.sha256
    return Html(
        '<details class="ms-details"><summary>Checksums (SHA-256)</summary>'
        '<div class="ms-sums" tabindex="0"><pre>{}</pre></div></details>'
    ).format("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def download(shipment: Shipment | None) -> tuple[str | None, str]:
    """The zip file and what its button says."""
    if shipment is None:
        return None, ""
    return str(shipment.zip), download_text(shipment.zip, shipment.bytes)


def build_text(view: View) -> Html:
    """How large a build would be, or what the last one is."""
    if view.model is None or view.structure is None or view.history is None:
        return Html()
    dtype = str(stored_dtype(view.model.loaded, view.structure)).removeprefix("torch.")
    size = bytes_text(checkpoint_bytes(view.model, view.structure))
    count = count_text(view.structure.parameters)
    words = f"The recipe makes a checkpoint of about {size} ({count} parameters in {dtype})."
    packed = view.build
    if packed is None:
        return note(words)
    loads = (
        "transformers loads it as it is"
        if packed.plain
        else "its blocks differ, so transformers loads it with trust_remote_code=True and the file that is inside"
    )
    old = "" if packed.recipe == view.history.current.key else " It was built from an earlier recipe."
    return note(f"Built: {count_text(packed.parameters)} parameters, {bytes_text(packed.bytes)}; {loads}.{old}") + (
        note(words) if old else ""
    )


def build_download(view: View) -> tuple[str | None, str]:
    """The built file and what its button says."""
    return (
        (None, "") if view.build is None else (str(view.build.path), download_text(view.build.path, view.build.bytes))
    )
