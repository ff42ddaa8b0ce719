"""Tables of failures: the first row that applies counts, and kinds are told by types where libraries have them."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from surgery.common.failure import out_of_memory
from surgery.errors import CorruptFile, DoesNotFit, NoNetwork, RemoteCodeNeeded, brief
from surgery.models.failures import Failure, anything, is_a, named, offline
from surgery.models.from_checkpoint import HUB, WEIGHTS
from surgery.models.tokenizer import TOKENIZER


def answer(kind: type[hub.HfHubHTTPError], status: int) -> Exception:
    request = httpx2.Request("HEAD", "https://huggingface.co/owner/name/resolve/main/tokenizer.json")
    return kind("no luck", response=httpx2.Response(status, request=request))


def after(error: Exception, cause: Exception | None = None, context: Exception | None = None) -> Exception:
    """An exception as `raise error from cause` leaves it, or as one that is raised while another is handled."""
    error.__context__ = context
    if cause is not None:  # setting it, even to None, hides the context
        error.__cause__ = cause
    return error


def test_the_first_row_that_applies_counts() -> None:
    table = (Failure(is_a(KeyError), NoNetwork, "{name} {what}"), Failure(is_a(LookupError), CorruptFile, "second"))
    found = named(table, KeyError(), name="{what}", what="{name!r}")
    assert type(found) is NoNetwork and str(found) == "{what} {name!r}", "words are taken as they are"
    assert type(named(table, IndexError(), name="", what="")) is CorruptFile
    assert named(table, ValueError(), name="", what="") is None
    assert str(named((Failure(anything, CorruptFile, "last"),), ValueError())) == "last"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: hub.OfflineModeIsEnabled("x"), True),
        (lambda: httpx2.ConnectError("refused"), True),
        (lambda: TimeoutError(), True),
        (lambda: after(OSError("We found nothing"), cause=hub.LocalEntryNotFoundError("none")), True),
        (lambda: after(ValueError("x"), context=after(OSError("y"), cause=answer(hub.HfHubHTTPError, 500))), True),
        (lambda: after(OSError("x"), cause=answer(hub.GatedRepoError, 403)), False),
        (lambda: after(OSError("x"), cause=answer(hub.RemoteEntryNotFoundError, 404)), False),
        (lambda: OSError("/models/connect-four-offline/tokenizer.json is damaged"), False),
        (lambda: ValueError("x"), False),
    ],
)
def test_no_network_is_told_by_types_and_not_by_words(error: Callable[[], Exception], expected: bool) -> None:
    assert offline(error()) is expected


def test_what_was_raised_from_nothing_has_no_cause() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        try:
            raise TimeoutError
        except TimeoutError:
            raise ValueError("x") from None
    assert not offline(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_torchs_own_refusal_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SafetensorError("header too large"), CorruptFile, "The weights of x are damaged (header too large): download"),
        (torch.OutOfMemoryError("x"), DoesNotFit, "x does not fit on the accelerator: free some of its memory"),
        (MemoryError(), DoesNotFit, "x does not fit in memory: close other programs"),
        (RuntimeError("can't allocate memory"), DoesNotFit, "x does not fit in memory: close other programs"),
        (OSError("x has only pytorch_model.bin"), CorruptFile, "x has no whole set of safetensors weights (pickled"),
        (hub.OfflineModeIsEnabled("off."), NoNetwork, "The weights of x could not be downloaded (off): check"),
        (ValueError("a\n  b."), CorruptFile, "x could not be loaded (a b): download it again."),
    ],
)
def test_weights(error: Exception, kind: type[Exception], words: str) -> None:
    found = named(WEIGHTS, error, source="x", reason=brief(error))
    assert type(found) is kind and str(found).startswith(words)


def test_tokenizers() -> None:
    for error, kind in (
        (ValueError("set trust_remote_code=True"), RemoteCodeNeeded),
        (after(OSError("We couldn't connect"), cause=hub.LocalEntryNotFoundError("none")), NoNetwork),
        (OSError("Can't load tokenizer"), CorruptFile),
    ):
        assert type(named(TOKENIZER, error, source="x", reason=brief(error))) is kind


def test_an_error_that_is_not_of_the_hub_is_not_renamed() -> None:
    assert named(HUB, RuntimeError("x"), source="x", shown="x", revision=None, reason="x") is None


def test_an_error_in_one_short_line() -> None:
    assert brief(ValueError(" two\n lines. ")) == "two lines" and brief(KeyError()) == "KeyError"
    assert len(brief(ValueError("x" * 500))) == 160
