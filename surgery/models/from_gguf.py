"""Loading a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgery.errors import CorruptFile, InputError, UnknownModel
from surgery.models.checks import _LENIENT, _brief, _check_whole, _exists, _must_fit, _needed_bytes, _too_large, quiet


def load_gguf(path: Path) -> tuple[Any, Any]:
    """A model and tokenizer from a GGUF file, dequantised to float32.

    Raises:
        UnknownModel: no such file.
        CorruptFile: not a whole GGUF file of a causal language model that transformers knows.
    """
    import gguf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not _exists(path.is_file):
        raise UnknownModel(f"There is no file {str(path)[:200]!r}: check the path.")
    arguments = {"gguf_file": path.name}
    try:
        tensors = gguf.GGUFReader(path).tensors
        held = 4 * sum(int(tensor.n_elements) for tensor in tensors)
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        raise CorruptFile(f"{path.name} is not a whole GGUF file ({_brief(error)}): download it again.") from None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(path.parent), **arguments)
    except Exception as error:  # as above, and architectures that transformers does not know
        raise _gguf_error(path, error) from None
    if getattr(config, "num_hidden_layers", 0) > len(tensors):
        raise CorruptFile(f"{path.name} announces blocks that it does not hold: download it again.")
    needed = _needed_bytes(path.name, config, False)
    if needed > 2 * held:
        raise CorruptFile(f"{path.name} announces larger tensors than it holds: download it again.")
    _must_fit(needed)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), dtype=torch.float32, output_loading_info=True, **_LENIENT, **arguments
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **arguments)
    except MemoryError:
        raise _too_large(path.name) from None
    except Exception as error:  # as above
        raise _gguf_error(path, error) from None
    _check_whole(path.name, info)
    # The weights are ordinary floats now; these marks would make save_pretrained refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model, tokenizer


def _gguf_error(path: Path, error: Exception) -> InputError:
    return CorruptFile(f"transformers cannot read the GGUF file {path.name} ({_brief(error)}): choose another file.")
