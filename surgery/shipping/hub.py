"""Uploading a shipped folder to the Hugging Face Hub, in one commit."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from typing import Any

from surgery.common.progress import Report, part_of, raise_if_set, silent
from surgery.errors import CorruptFile, GatedModel, InputError, NoNetwork
from surgery.models.checks import quiet
from surgery.shipping.checksums import SUMS, check_sums

MESSAGE = "Model Surgery"
TOKEN = "HF_TOKEN"
"""Where a token is looked for that the caller does not give."""


def check_upload(repo_id: str, token: str | None = None) -> str:
    """The token that an upload would use. Raises InputError: there is none, or the repository's name is none."""
    token = token or os.environ.get(TOKEN)
    if not token:
        raise InputError(f"Uploading needs a token with the right to write: give one, or set {TOKEN}.")
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id[:100]!r} is not the name of a repository: write it as owner/name.")
    return token


def push(
    folder: Path,
    repo_id: str,
    token: str | None = None,
    private: bool = True,
    report: Report = silent,
    stop: Event | None = None,
    api: Any = None,
) -> str:
    """Upload every file that the folder's sums list into a model repository, which is made if it is not there.

    Large files go up one by one; nothing is visible before the one commit at the end. The token is handed to the
    library and goes nowhere else.

    Args:
        folder: that `ship` made.
        repo_id: owner/name.
        token: with the right to write; the environment's `HF_TOKEN` if None.
        private: of a repository that is made; one that is there stays as it is.
        api: an `huggingface_hub.HfApi`, for another endpoint.

    Returns:
        The repository's address.

    Raises:
        InputError: no token, a bad name, no right to write, no network; one sentence each.
        CorruptFile: the folder's sums do not hold.
        Cancelled: stopped; the repository may have been made, and is empty.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    token = check_upload(repo_id, token)
    sums = check_sums(folder, part_of(report, 0.0, 0.1), stop)
    if not sums.holds:
        wrong = ", ".join((*sums.changed, *sums.missing))
        raise CorruptFile(f"{wrong[:200]} of {folder.name} changed since shipping: ship the model again.")
    hub = api or HfApi()
    names = [*sums.sha256, SUMS]
    try:
        with quiet():
            address = str(hub.create_repo(repo_id, token=token, private=private, exist_ok=True))
            files = [CommitOperationAdd(name, folder / name) for name in names]
            for number, file in enumerate(files):
                raise_if_set(stop)
                report(0.1 + 0.8 * number / len(files), f"Uploading {file.path_in_repo}")
                hub.preupload_lfs_files(repo_id, [file], token=token)
            report(0.9, "Committing")
            hub.create_commit(repo_id, files, commit_message=MESSAGE, token=token)
    except errors.HFValidationError:
        raise InputError(f"{repo_id[:100]!r} is not the name of a repository: write it as owner/name.") from None
    except (errors.OfflineModeIsEnabled, ConnectionError):
        raise NoNetwork("The Hub cannot be reached: check the network, and that HF_HUB_OFFLINE is not set.") from None
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from None
    except (errors.HTTPError, OSError) as error:
        raise NoNetwork(
            f"The upload to {repo_id} was interrupted ({type(error).__name__}): check the network and try again."
        ) from None
    report(1.0, "Uploaded")
    return address


def _refused(repo_id: str, error: Any) -> InputError:
    """What the Hub's answer means. Its own words are left out: nobody knows what they repeat."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        return GatedModel("The Hub does not know this token: make a new one at https://huggingface.co/settings/tokens.")
    if code == 403:
        return GatedModel(f"This token may not write to {repo_id}: use one that may, or another repository.")
    if code == 404:
        return InputError(f"The Hub has no place for {repo_id}: check the owner's name, and that the token is theirs.")
    return NoNetwork(f"The Hub refused the upload to {repo_id} (HTTP {code}): try again later.")
