"""The verb `suggest` of the command line."""

from __future__ import annotations

import json
from typing import Annotated, get_args

import typer

from surgery.cli.console import prepare, run_job
from surgery.cli.options import JsonOption, ModelOptions, OutOption, SpreadOption, TextOptions, one_of
from surgery.common.ranges import parse_blocks
from surgery.pruning.budget import CFSP_SHARPNESS, Allocation, Budget, HeadUnit, Rules, parse_expansion_ratio


def suggest(
    source: ModelOptions,
    method: Annotated[str, typer.Option("--method", help="A name that `methods` lists.")],
    blocks: Annotated[int | None, typer.Option("--blocks", min=0, help="How many blocks or sublayers go.")] = None,
    params: Annotated[str | None, typer.Option("--params", help="-20%, 80% or a number of parameters.")] = None,
    expansion_ratio: Annotated[str | None, typer.Option("--expansion-ratio", help="2.0 or 200%.")] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, help="Neurons of each MLP, or channels, that stay.")
    ] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", help="Percent of each layer's own units that go.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=0, help="KV groups or query heads that go, over the whole model.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option("--kv-heads", min=1, help="Key/value heads that stay in each block when merging.")
    ] = None,
    divisor: Annotated[int, typer.Option("--divisor", min=1, help="Widths are multiples of this.")] = 1,
    protect_first: Annotated[int, typer.Option("--protect-first", min=0, help="First blocks that stay whole.")] = 0,
    protect_last: Annotated[int, typer.Option("--protect-last", min=0, help="Last blocks that stay whole.")] = 0,
    no_neighbours: Annotated[bool, typer.Option("--no-neighbours", help="Never remove two adjacent blocks.")] = False,
    allocation: Annotated[
        str, typer.Option("--allocation", help="Over the blocks: uniform, cfsp, global (scores standardised), raw.")
    ] = "uniform",
    sharpness: Annotated[float, typer.Option("--sharpness", help="Of the allocation cfsp.")] = CFSP_SHARPNESS,
    same_width: Annotated[
        bool, typer.Option("--same-width", help="All blocks alike, even if --params is met less closely.")
    ] = False,
    unit: Annotated[
        str, typer.Option("--unit", help="What head methods remove: kv_groups, query_heads.")
    ] = "kv_groups",
    seed: Annotated[int, typer.Option("--seed", help="Of the random controls.")] = 0,
    keep_candidates: Annotated[
        int | None,
        typer.Option("--keep-candidates", min=1, help="Candidates that a greedy step measures; all if absent."),
    ] = None,
    per_parameter: Annotated[
        bool, typer.Option("--per-parameter", help="Greedy steps weigh the loss by the parameters removed.")
    ] = False,
    protect_blocks: Annotated[
        str, typer.Option("--protect-blocks", help="Blocks that stay whole, such as 3,5-7.")
    ] = "",
    text: TextOptions = TextOptions(windows=16),
    spread: SpreadOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a recipe from a method, a budget and rules. The text is for calibration."""
    ratio = None if expansion_ratio is None else parse_expansion_ratio(expansion_ratio)
    budget = Budget(blocks, params, ratio, width, divisor, percent, heads, kv_heads)
    budget.given()
    rules = Rules(
        protect_first,
        protect_last,
        no_neighbours,
        one_of(allocation, get_args(Allocation), "--allocation"),
        sharpness,
        same_width,
        one_of(unit, get_args(HeadUnit), "--unit"),
        seed,
        keep_candidates,
        per_parameter,
        parse_blocks(protect_blocks),
    )
    from surgery.pruning import catalogue
    from surgery.pruning.suggest import check_request
    from surgery.pruning.suggest import suggest as suggest_recipe

    check_request(method, budget, rules)
    item = catalogue.entry(method)
    bench, opened = prepare(source)
    cut = None
    if item.needs_text or rules.allocation == "cfsp":
        cut = opened.windows(text.analysed(spread))
    recipe = run_job(
        bench, "Choosing", lambda job: suggest_recipe(opened, method, budget, rules, cut, job.stop, job.report)
    )
    if out is not None:
        recipe.save(out)
    if as_json or out is None:
        print(json.dumps(recipe.document()) if as_json else recipe.to_json())
