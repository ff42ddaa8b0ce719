"""Shipping from a person's session: the current recipe as a verified folder, as one file, and on the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from surgery.common.jobs import Context, Job
from surgery.common.progress import part_of
from surgery.errors import InputError, VerificationFailed
from surgery.recipe.recipe import Recipe
from surgery.recipe.texts import TextChoice
from surgery.session.heal import HealingSession
from surgery.shipping.download import file_name
from surgery.shipping.hub import push
from surgery.shipping.origin import origin_of
from surgery.shipping.ship_folder import ship
from surgery.shipping.shipment import Shipment, ShippingDownload, pack_shipment
from surgery.shipping.weights import ShipOptions
from surgery.workbench.workbench import Workbench

PUBLIC = ("embedded", "wikitext-2")
"""Texts, beside those of the Hub, whose tokens may go along with a folder."""


class ShippingSession(HealingSession):
    """See the module.

    Args:
        bench: what all sessions share.
    """

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self._shipping: ShippingDownload | None = None

    def attach(self, identity: str | None) -> bool:
        """Follow a job that was started before the page was reloaded; whether it is still under way."""
        attached = super().attach(identity)
        found = self.bench.downloads.get(identity or "")
        if attached and isinstance(found, ShippingDownload):
            with self._lock:
                self._shipping = found
        return attached

    def close(self, stop_job: bool = True) -> None:
        """Stop what still runs, see `JobHolder.close`, and let go of the shipped files."""
        super().close(stop_job)
        with self._lock:
            self._shipping = None

    @property
    def recipe(self) -> Recipe:
        """The recipe in force.

        Raises:
            InputError: no model is open.
        """
        return self._need_editor().history.current

    @property
    def shipment(self) -> Shipment | None:
        """The last shipment, if it is complete."""
        return self._shipping.shipment if self._shipping is not None else None

    def ship(self, options: ShipOptions, base: Path | None = None) -> Job:
        """Ship the current recipe (as a job), measured on the session's text. A session keeps one shipment.

        The measured text's token ids go along only if the text is a public one.

        Args:
            options: what goes in.
            base: the folder in which to make it; the system's place for temporary files when None.

        Raises:
            InputError: no model is open, or another job is under way.
        """
        model = self._need_model()
        with self._lock:
            self._refuse_second_job()
            recipe, text, texts = self.recipe, self.text, list(self._texts.values())
            options = replace(options, keep_windows=options.keep_windows and is_public(text))
            self._shipping = None  # its room is needed
            download = ShippingDownload(base)

            def work(job: Context) -> None:
                out = download.folder / f"{file_name(origin_of(model.loaded).name)}-{recipe.key}"
                try:
                    shipped = ship(model, recipe, out, text, options, texts, part_of(job.report, 0.0, 0.9), job.stop)
                except VerificationFailed as error:  # the folder goes with the session: nobody can look at it
                    raise VerificationFailed(error.message, error.verification) from None
                download.shipment = pack_shipment(shipped, recipe.key, part_of(job.report, 0.9, 1.0))

            job = self._start("Shipping", work)
            self._shipping = self.bench.downloads[job.id] = download
            return job

    def push(self, repository: str, token: str, private: bool = True) -> Job:
        """Upload the last shipment to the Hub (as a job).

        Args:
            repository: owner/name.
            token: the person's own; the server's is never used.
            private: of a repository that is made.

        Raises:
            InputError: nothing was shipped, there is no token, or another job is under way.
        """
        with self._lock:
            self._refuse_second_job()
            download, shipment = self._shipping, self.shipment
            if download is None or shipment is None:
                raise InputError("Nothing is shipped yet: make the folder first.")
            if not token.strip():
                raise InputError("Uploading needs a token of your own with the right to write: fill it in.")

            def work(job: Context) -> None:
                folder = shipment.shipped.path
                address = push(folder, repository.strip(), token.strip(), private, job.report, job.stop)
                download.shipment = replace(shipment, repository=address)

            job = self._start("Uploading", work)
            self.bench.downloads[job.id] = download
            return job


def is_public(text: TextChoice) -> bool:
    """Whether everybody can have that text."""
    return text.content is None and (text.source in PUBLIC or text.source.startswith("hub:"))
