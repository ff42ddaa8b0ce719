"""Loading a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from analysis.files import size_of
from surgery.errors import CorruptFile, DoesNotFit, UnknownModel, brief
from surgery.models.checks import LENIENT, TOO_LARGE, check_whole, must_fit, needed_bytes, quiet
from surgery.models.failures import Failure, anything, named, out_of_memory

GGUF = (
    Failure(out_of_memory, DoesNotFit, TOO_LARGE),
    Failure(anything, CorruptFile, "transformers cannot read the GGUF file {source} ({reason}): choose another file."),
)


def load_gguf(path: Path) -> tuple[Any, Any]:
    """A model and tokenizer from a GGUF file, dequantised to float32.

    Raises:
        UnknownModel: no such file.
        CorruptFile: not a whole GGUF file of a causal language model that transformers knows.
    """
    import gguf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if size_of(path) is None:
        raise UnknownModel(f"There is no file {str(path)[:200]!r}: check the path.")
    arguments = {"gguf_file": path.name}
    try:
        tensors = gguf.GGUFReader(path).tensors
        held = 4 * sum(int(tensor.n_elements) for tensor in tensors)
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        raise CorruptFile(f"{path.name} is not a whole GGUF file ({brief(error)}): download it again.") from None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(path.parent), **arguments)
    except Exception as error:  # as above, and architectures that transformers does not know
        raise (named(GGUF, error, source=path.name, reason=brief(error)) or error) from None
    if getattr(config, "num_hidden_layers", 0) > len(tensors):
        raise CorruptFile(f"{path.name} announces blocks that it does not hold: download it again.")
    needed = needed_bytes(path.name, config, False)
    if needed > 2 * held:
        raise CorruptFile(f"{path.name} announces larger tensors than it holds: download it again.")
    must_fit(needed)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), dtype=torch.float32, output_loading_info=True, **LENIENT, **arguments
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **arguments)
    except Exception as error:  # as above
        raise (named(GGUF, error, source=path.name, reason=brief(error)) or error) from None
    check_whole(path.name, info)
    # The weights are ordinary floats now; these marks would make save_pretrained refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model, tokenizer
