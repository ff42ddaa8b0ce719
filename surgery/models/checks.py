"""Whether a model is whole and fits into memory, and what its libraries print meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import nn

from surgery.errors import CorruptFile, DoesNotFit, InputError, brief
from surgery.folders.modeling import classes, family_of

MOST_BLOCKS = 2000
"""More blocks than any model has; a damaged count would keep transformers busy for hours."""
TOO_LARGE = "{source} does not fit in memory: close other programs or choose a smaller model."
LENIENT = {"ignore_mismatched_sizes": True}
"""Tensors of another shape are reported beside the missing ones instead of raised; both are refused here."""


def check_whole(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint with absent or misshapen tensors, which transformers would fill with random numbers."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    names = sorted(str(key) for key in (*info["missing_keys"], *mismatched))
    if names:
        raise CorruptFile(
            f"{name} lacks {len(names)} tensors, or holds them in another shape ({names[0]} first): download it again."
        )


def configuration_error(source: str, error: Exception, setting: str = "") -> InputError:
    """Name what a configuration class raised, and the setting that it raised it for, where that is known."""
    what = f"{setting} in the configuration" if setting else "The configuration"
    return CorruptFile(f"{what} of {source} cannot be used ({brief(error)}): put it right, or download it again.")


def float32_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights in float32, shared ones once."""
    return 4 * sum({id(parameter): parameter.numel() for parameter in model.parameters()}.values())


def empty(source: str, config: Any, trust_remote_code: bool) -> Any:
    """A model on the meta device."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            family = family_of(config)
            if family is not None:
                return classes(family)[1](config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # impossible sizes, unknown activations and the like
        raise configuration_error(source, error) from None


def must_fit(needed: int) -> None:
    """Raise DoesNotFit where that many bytes are more than the free memory."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise DoesNotFit(
            f"The model needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            "close other programs or choose a smaller model."
        )


def exists(check: Callable[[], bool]) -> bool:
    """`Path.is_file` and `Path.is_dir` raise for a name that is too long or a folder that may not be entered."""
    try:
        return check()
    except OSError:
        return False


CHATTY = ("torchao", "torch.utils._pytree", "torch._inductor")
"""Loggers that warn, when transformers imports torchao, of kernels for other machines."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' progress bars and warnings do not belong into a command's output."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
