"""The numbers of one block in words: what it is, what is left of it, what it matters. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from analysis.importance.similarity import attention_influence, block_influence, mlp_influence
from analysis.model.architecture import Block
from surgery.errors import InputError
from surgery.fit.kv_cache import kv_cache_bytes, usable_kv_type
from surgery.session.view import View
from surgery.structure.removal import RemovalKind
from surgery.structure.structure import BlockSpec
from ui.presenters.detail_widget import block_of, specs_of
from ui.presenters.text import Html, count_text, loss_text, note, number_text

NONE = "none"
"""What the list of blocks sends for no block."""
REMOVALS: dict[RemovalKind, str] = {"blocks": "the block", "attention": "its attention", "mlp": "its MLP"}
Fact = tuple[str, str, str]
"""Name, words, and where the number comes from."""


def block_choices(view: View) -> list[tuple[str, str]]:
    """The blocks for the list: words and number."""
    count = len(view.model.architecture.blocks) if view.model is not None else 0
    return [("No block", NONE), *((f"Block {index}", str(index)) for index in range(count))]


def chosen_block(value: object) -> int | None:
    """The block that the list sent; None for none. Raises `InputError` if it is neither."""
    text = str(value or NONE)
    if text == NONE:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InputError("Choose one of the blocks from the list.")
    return int(text)


def detail_text(view: View, selected: int | None) -> Html:
    """The block's numbers, or how a block is selected."""
    block = block_of(view, selected)
    if view.model is None or view.structure is None:
        return Html()
    if block is None:
        return note("Select a block, on the map or in this list, to see its heads, its neurons and its numbers.")
    row = Html('<tr><th scope="row">{}</th><td>{}</td><td class="ms-kind">{}</td></tr>')
    return Html(
        '<table class="ms-facts"><caption>{}</caption><thead class="ms-hidden"><tr>'
        "<th>number</th><th>value</th><th>where it comes from</th></tr></thead><tbody>{}</tbody></table>"
    ).format(_title(view, block), Html().join(row.format(*fact) for fact in facts(view, block)))


def _title(view: View, block: Block) -> str:
    """Which block, and whether it is there."""
    assert view.model is not None
    times = len(specs_of(view, block))
    state = ", removed" if not times else f", {times} times in the model" if times > 1 else ""
    return f"Block {block.index} of 0 to {len(view.model.architecture.blocks) - 1}{state}"


def facts(view: View, block: Block) -> Iterator[Fact]:
    """Everything that is known of a block."""
    yield _influence(view, block)
    yield _parameters(view, block)
    specs = specs_of(view, block)
    spec = specs[0] if specs else BlockSpec(block.index, (), (), ())
    if block.attention is not None:
        yield _heads(block, spec)
        yield _cache(view, block, specs)
    if block.mlp is not None:
        whole, kept = block.mlp.width, len(spec.neurons)
        ratios = f"expansion ratio {100 * kept / block.mlp.hidden_size:.1f}%"
        source = "" if kept == whole else f" ({100 * whole / block.mlp.hidden_size:.1f}% in the source)"
        yield "MLP width", f"{_of(kept, whole)} neurons, {ratios}{source}", "arithmetic"
    yield from _removals(view, block)


def _of(kept: int, whole: int) -> str:
    return f"all {whole:,}" if kept == whole else f"{kept:,} of {whole:,}"


def _influence(view: View, block: Block) -> Fact:
    statistics = view.analyse.statistics
    if statistics is None:
        return "Influence", "not measured yet: press Analyse", ""
    found = statistics.similarities
    words = [f"block {float(block_influence(found)[block.index]):.3g}"]
    words += [f"attention {float(attention_influence(found)[block.index]):.3g}"] if block.attention else []
    words += [f"MLP {float(mlp_influence(found)[block.index]):.3g}"] if block.mlp else []
    return "Influence", f"{', '.join(words)} (1 - cosine)", f"measured on {statistics.tokens:,} tokens, dense"


def _parameters(view: View, block: Block) -> Fact:
    assert view.structure is not None
    specs, source = specs_of(view, block), view.structure.architecture.blocks[block.index]
    kept, whole = sum(spec.parameters(source) for spec in specs), block.parameters
    share = f"{100 * kept / view.structure.parameters:.1f}% of the model"
    words = f"all {count_text(whole)}" if kept == whole else f"{count_text(kept)} of {count_text(whole)}"
    return "Parameters", f"{words}, {share}", "arithmetic"


def _heads(block: Block, spec: BlockSpec) -> Fact:
    assert block.attention is not None
    query = f"{_of(len(spec.query_heads), block.attention.query_heads)} query heads"
    groups = f"{_of(len(spec.kv_heads), block.attention.kv_heads)} KV {'heads' if spec.merged else 'groups'}"
    return "Heads", f"{query}, {groups}{', merged' if spec.merged else ''}", "arithmetic"


def _cache(view: View, block: Block, specs: list[BlockSpec]) -> Fact:
    assert view.structure is not None and view.dense is not None and block.attention is not None
    kind = usable_kv_type(view.dense, view.target.kv_type)

    def size(shown: tuple[BlockSpec, ...]) -> int:
        assert view.dense is not None
        return kv_cache_bytes(replace(view.dense, blocks=shown), 1, kind)

    kept, whole = size(tuple(specs)), size((view.dense.blocks[block.index],))
    window = block.attention.window
    words = f"{_of(kept, whole)} bytes a token in {kind}"
    return "KV cache", words + (f", for the last {window:,} tokens" if window else ""), "arithmetic"


def _removals(view: View, block: Block) -> Iterator[Fact]:
    """What the model loses without the block or one of its parts, from a scan of the dense model."""
    scanned = view.scan
    found = False
    for kind, words in REMOVALS.items():
        row = scanned.scan.removals.get(kind, [])[block.index : block.index + 1] if scanned is not None else []
        if scanned is None or not row or row[0] is None:
            continue
        found, estimate = True, row[0]
        loss = loss_text(estimate.difference, estimate.difference_standard_error)
        change = f"{number_text(estimate.dense_perplexity)} → {number_text(estimate.perplexity)}"
        yield f"Without {words}", f"perplexity {change}, loss {loss}", f"measured on {estimate.tokens:,} tokens, dense"
        if scanned.predicted is not None:
            rise: torch.Tensor = getattr(scanned.predicted.second, kind)[block.index]
            yield f"Without {words}", f"loss {float(rise):+.3f} nats by second order", "estimated from gradients"
    if not found:
        yield "Without it", "not measured: “Measure every removal” does, below the charts", ""
