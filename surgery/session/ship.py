"""Shipping from a person's session: the current recipe as a verified folder, as one file, and on the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from surgery.common.jobs import Context, Job, JobKind
from surgery.common.progress import part_of
from surgery.errors import InputError, VerificationFailed
from surgery.recipe.texts import TextChoice
from surgery.session.jobs import SessionJobs
from surgery.session.state import SessionState
from surgery.shipping.download import file_name
from surgery.shipping.hub import push
from surgery.shipping.origin import origin_of
from surgery.shipping.ship_folder import ship
from surgery.shipping.shipment import Shipment, ShippingDownload, pack_shipment
from surgery.shipping.weights import ShipOptions

PUBLIC = ("embedded", "wikitext-2")
"""Texts, beside those of the Hub, whose tokens may go along with a folder."""


class SessionShip:
    """Ships the current recipe. A session keeps one shipment."""

    def __init__(self, state: SessionState, jobs: SessionJobs) -> None:
        self.state, self.jobs = state, jobs
        self._download: ShippingDownload | None = None

    def start(self, options: ShipOptions, base: Path | None = None) -> Job:
        """Ship the current recipe (as a job), measured on the session's text. A session keeps one shipment.

        The measured text's token ids go along only if the text is a public one.

        Raises:
            InputError: no model is open, or another job is under way.
        """
        state = self.state
        model = state.need_model()
        with state.lock:
            self.jobs.refuse_second()
            recipe, text, texts = state.need_editor().history.current, state.text, list(state.texts.values())
            options = replace(options, keep_windows=options.keep_windows and is_public(text))
            self._download = None  # its room is needed
            download = ShippingDownload(base)

            def work(job: Context) -> None:
                out = download.folder / f"{file_name(origin_of(model.loaded).name)}-{recipe.key}"
                try:
                    shipped = ship(model, recipe, out, text, options, texts, part_of(job.report, 0.0, 0.9), job.stop)
                except VerificationFailed as error:  # the folder goes with the session: nobody can look at it
                    raise VerificationFailed(error.message, error.verification) from None
                download.shipment = pack_shipment(shipped, recipe.key, part_of(job.report, 0.9, 1.0))

            self._download = download
            return self.jobs.start(JobKind.SHIP, "Shipping", work, download)

    def push(self, repository: str, token: str, private: bool = True) -> Job:
        """Upload the last shipment to the Hub (as a job).

        Args:
            repository: owner/name.
            token: the person's own; the server's is never used.
            private: of a repository that is made.

        Raises:
            InputError: nothing was shipped, there is no token, or another job is under way.
        """
        with self.state.lock:
            self.jobs.refuse_second()
            download, shipment = self._download, self.shown()
            if download is None or shipment is None:
                raise InputError("Nothing is shipped yet: make the folder first.")
            if not token.strip():
                raise InputError("Uploading needs a token of your own with the right to write: fill it in.")

            def work(job: Context) -> None:
                folder = shipment.shipped.path
                address = push(folder, repository.strip(), token.strip(), private, job.report, job.stop)
                download.shipment = replace(shipment, repository=address)

            return self.jobs.start(JobKind.PUSH, "Uploading", work, download)

    def hold(self, job: Job) -> None:
        """Keep the files of a job that is found again, which its own session may let go of."""
        if job.kind in (JobKind.SHIP, JobKind.PUSH):
            self._download = job.product

    def close(self) -> None:
        """Let go of the files."""
        self._download = None

    def shown(self) -> Shipment | None:
        """The last shipment, if it is complete."""
        return self._download.shipment if self._download is not None else None


def is_public(text: TextChoice) -> bool:
    """Whether everybody can have that text."""
    return text.content is None and (text.source in PUBLIC or text.source.startswith("hub:"))
