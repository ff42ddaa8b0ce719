"""The way of OptiPFair 0.4.2: copy the model, prune the copy, evaluate it whole.

The package is not a dependency: `pip install --no-deps --target DIR optipfair==0.4.2`, and DIR on PYTHONPATH.
It can remove blocks and narrow MLPs (its own choice of neurons, by layer); it has no removal of attentions, MLPs or
KV groups.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from typing import Any

import torch
from torch import nn

from analysis.text import Windows
from benchmarks.edits import Draft, NarrowingChoice

KINDS = ("block", "width")
"""The kinds of edits that it can do."""
LAYERS = "model.layers"


def installed() -> bool:
    """Whether the package can be imported; its logging is turned down."""
    try:
        import optipfair  # noqa: F401
    except ImportError:
        return False
    logging.getLogger("optipfair").setLevel(logging.WARNING)
    return True


def version() -> str:
    """The version that is measured."""
    import optipfair

    return str(optipfair.__version__)


def evaluate(model: nn.Module, draft: Draft, windows: Windows) -> float:
    """Mean negative log likelihood of the draft's model over all windows, the rival's way."""
    return mean_loss(pruned(model, draft), windows)


def pruned(model: nn.Module, draft: Draft) -> nn.Module:
    """A pruned copy; widths first, since removing blocks renumbers them."""
    from optipfair import prune_model

    result: Any = copy.deepcopy(model)
    for percentage in sorted(set(draft.widths.values())):
        layers = [index for index, share in draft.widths.items() if share == percentage]
        result = prune_model(
            result, "MLP_GLU", pruning_percentage=percentage, layer_indices=layers, show_progress=False
        )
    if draft.blocks:
        with contextlib.redirect_stdout(io.StringIO()):
            result = prune_model(result, "DEPTH", layer_indices=sorted(draft.blocks), show_progress=False)
    return result.eval()


@torch.inference_mode()
def mean_loss(model: nn.Module, windows: Windows) -> float:
    """A plain forward pass over all windows in one batch, and the cross-entropy of its logits."""
    logits = model(input_ids=windows.ids, use_cache=False).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten()))


def its_choice(model: nn.Module) -> NarrowingChoice:
    """The neurons that its default method would remove, so that both ways measure the same model."""
    from optipfair.pruning.mlp_glu import compute_neuron_pair_importance_maw

    def choose(index: int, percentage: int) -> tuple[int, ...]:
        mlp: Any = model.get_submodule(f"{LAYERS}.{index}.mlp")
        scores = compute_neuron_pair_importance_maw(mlp.gate_proj.weight, mlp.up_proj.weight)
        keep = len(scores) - int(percentage / 100 * len(scores))
        kept = set(torch.topk(scores, keep).indices.tolist())
        return tuple(neuron for neuron in range(len(scores)) if neuron not in kept)

    return choose
