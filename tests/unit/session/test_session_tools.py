"""Suggestions, compensations, scans and builds of a session on a tiny model; errors and cancels change nothing."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.importance.predictions import predicted_changes
from surgery.common import scratch
from surgery.errors import InputError, RecipeError
from surgery.evaluation.scan import scan
from surgery.pruning import catalogue
from surgery.pruning.budget import Budget, Rules
from surgery.pruning.suggest import suggest
from surgery.recipe.base import TextReference
from surgery.recipe.edits import Compensate, PruneNeurons, RemoveBlocks
from surgery.recipe.texts import TextChoice
from surgery.session import build as session_build
from surgery.session.session import Session
from surgery.session.view import View
from surgery.shipping import download
from surgery.structure.choices import Choices
from surgery.workbench.open_model import OpenModel
from surgery.workbench.workbench import Workbench
from tests.sessions import LONG, SMALL, idle, measured, until
from tests.tiny_workbench import open_model
from ui.presenters.suggest import suggestion_text


def ops(view: View) -> list[str]:
    assert view.history is not None
    return [edit.op for edit in view.history.current.edits]


def model_of(session: Session) -> OpenModel:
    model = session.view().model
    assert model is not None
    return model


def waiting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Event:
    """Makes a function that reports wait for the returned event."""
    go, real = Event(), getattr(owner, name)

    def held(*arguments: Any, **options: Any) -> Any:
        report = next(a for a in [*options.values(), *reversed(arguments)] if callable(a) and not isinstance(a, type))
        while not go.wait(0.005):
            report(0.3, "waiting")
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, held)
    return go


def taken(session: Session) -> View:
    """The view after the suggestion that is under way was taken."""
    idle(session)
    session.suggest.take()
    return session.view()


def test_a_suggestion_is_shown_before_it_is_taken(session: Session) -> None:
    session.suggest.start("block_influence", Budget(blocks=1))
    view = idle(session)
    assert ops(view) == [] and view.suggest is not None
    (gone,) = Choices.of(view.suggest.recipe).blocks
    shown = suggestion_text(view)
    assert f"<td>{gone}</td>" in shown and shown.count("<tr>") == 2 and "3 blocks kept, 1 removed" in shown
    assert f"{100 * view.suggest.structure.parameters / view.suggest.before.parameters:.1f}%" in shown
    model = model_of(session)
    estimate = model.evaluator.measure(view.suggest.structure, model.windows(view.text))
    assert view.suggest.cost is not None and view.suggest.cost.estimate.nll == estimate.nll
    assert f"Perplexity would be {estimate.perplexity:,.3f} (measured), {estimate.difference:+.3f}" in shown
    session.scan.start(("blocks",))
    view = idle(session)
    assert view.scan is not None and view.scan.scan.removals["blocks"][gone] is not None
    cost = view.scan.scan.removals["blocks"][gone].difference  # type: ignore[union-attr]
    assert f"cost {cost:+.3f} nats in sum" in suggestion_text(view)
    session.suggest.discard()
    assert session.view().suggest is None and suggestion_text(session.view()) == ""
    with pytest.raises(InputError, match="no suggestion"):
        session.suggest.take()
    session.suggest.start("block_influence", Budget(blocks=1))
    idle(session)
    session.edit.switch([3], [], [])
    assert session.view().suggest is None, "it was of another recipe"


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("block_influence", Budget(blocks=1)),
        ("taylor_blocks", Budget(params="-10%")),
        ("perplexity_scan", Budget(blocks=2)),
        ("greedy_sublayers", Budget(blocks=2)),
        ("mlp_influence", Budget(blocks=1)),
        ("cfsp_fine", Budget(expansion_ratio=0.5)),
        ("random_neurons", Budget(percent=25.0)),
        ("magnitude_heads", Budget(heads=1)),
        ("gqa_mean", Budget(kv_heads=1)),
        ("minitron_hidden", Budget(width=64)),
    ],
)
def test_a_suggestion_is_the_one_of_the_core_and_one_step(session: Session, name: str, budget: Budget) -> None:
    job, model = session.suggest.start(name, budget), model_of(session)
    view = taken(session)
    assert job.state == "done", job.error
    expected = suggest(model, name, budget, windows=model.windows(session.state.calibration))
    assert view.history is not None and view.history.current.key == expected.key
    assert set(ops(view)) <= set(catalogue.KINDS[catalogue.entry(name).kind].ops)
    assert all(edit.chosen_by is not None and edit.chosen_by.method == name for edit in view.history.current.edits)
    assert measured(session).measure.estimate is not None
    session.edit.undo()
    assert ops(session.view()) == []


def test_what_a_suggestion_costs_is_known_of_neurons_and_heads_too_but_not_before_a_compensation(
    session: Session,
) -> None:
    for name, budget in (("cfsp_fine", Budget(percent=20)), ("magnitude_heads", Budget(heads=1))):
        session.suggest.start(name, budget)
        view = idle(session)
        assert view.suggest is not None and view.suggest.cost is not None
        assert view.suggest.cost.estimate.complete and view.suggest.cost.text == view.text
    session.edit.set_text(replace(SMALL, windows=2))
    assert "is measured once it is taken" in suggestion_text(session.view()), "it was measured on another text"
    session.edit.compensate(["least_squares"], True)
    session.suggest.start("cfsp_fine", Budget(percent=20))
    view = idle(session)
    assert view.suggest is not None and view.suggest.structure.pending and view.suggest.cost is None
    assert "is measured once it is taken" in suggestion_text(view)


def test_suggestions_leave_locked_blocks_alone(session: Session) -> None:
    before = session.view()
    session.edit.lock([3, 0, 0])
    view = session.view()
    assert view.locked == (0, 3) and view.version > before.version and view.history is before.history
    session.suggest.start("random_blocks", Budget(blocks=2), Rules(seed=3))
    idle(session)
    session.suggest.take()
    history = session.view().history
    assert history is not None and Choices.of(history.current).blocks == {1, 2}
    with pytest.raises(InputError, match="0 to 3"):
        session.edit.lock([4])
    assert session.view().locked == (0, 3)


def test_a_suggestion_replaces_edits_of_its_kind_and_keeps_the_others(session: Session) -> None:
    session.edit.switch([3], [0], [])
    session.analyse.narrow("maw", 0.5)
    session.suggest.start("random_blocks", Budget(blocks=1), Rules(protect_last=2, seed=3))
    view = taken(session)
    assert ops(view) == ["remove_blocks", "remove_attention", "prune_neurons"]
    choices = Choices.of(view.history.current)  # type: ignore[union-attr]
    assert choices.blocks <= {0, 1} and choices.attention == {0} - choices.blocks and set(choices.neurons)
    session.suggest.start("gqa_mean", Budget(kv_heads=1))
    session_view = taken(session)
    assert ops(session_view)[-1] == "merge_kv_heads" and session_view.history is not None
    before = session_view.history.current
    session.suggest.start("magnitude_heads", Budget(heads=1))
    view = idle(session)
    assert view.job is not None and view.job.state == "failed" and view.job.bad_input
    assert "merged" in view.job.error or "keep one" in view.job.error
    assert view.history is not None and view.history.current == before


def test_a_suggestion_that_asks_for_nothing_brings_its_kind_back(session: Session) -> None:
    session.edit.switch([3], [], [1])
    session.suggest.start("random_blocks", Budget(blocks=0))
    assert ops(taken(session)) == ["remove_mlp"]


@pytest.mark.parametrize(
    ("name", "budget", "rules", "said"),
    [
        ("block_influence", Budget(blocks=99), Rules(), "can go"),
        ("block_influence", Budget(width=3), Rules(), "its budget is"),
        ("block_influence", Budget(blocks=1), Rules(allocation="cfsp"), "does not go with"),
        ("gqa_mean", Budget(kv_heads=2), Rules(), "evenly"),
        ("maw", Budget(params="lots"), Rules(), "not a parameter budget"),
    ],
)
def test_a_suggestion_that_cannot_be_is_refused_in_a_sentence(
    session: Session, name: str, budget: Budget, rules: Rules, said: str
) -> None:
    session.edit.switch([1], [], [])
    session.suggest.start(name, budget, rules)
    view = idle(session)
    assert view.job is not None and view.job.state == "failed" and view.job.bad_input and said in view.job.error
    assert ops(view) == ["remove_blocks"]
    with pytest.raises(InputError, match="no method"):
        session.suggest.start("nobody", Budget(blocks=1))


def test_a_cancelled_suggestion_changes_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(monkeypatch, OpenModel, "statistics")
    session.suggest.start("block_influence", Budget(blocks=1))
    until(session, lambda view: view.job is not None and view.job.state == "running")
    with pytest.raises(InputError, match="still running"):
        session.scan.start()
    with pytest.raises(InputError, match="still running"):
        session.analyse.narrow("cfsp_fine", 0.5)
    assert session.view().analyse.pending_ratio is None
    session.cancel()
    view = idle(session)
    assert view.job is not None and view.job.state == "cancelled" and ops(view) == []


def test_a_reloaded_page_gets_the_suggestion_that_was_under_way(
    bench: Workbench, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, model = waiting(monkeypatch, OpenModel, "statistics"), model_of(session)
    job = session.suggest.start("block_influence", Budget(blocks=1))
    again = Session(bench)
    assert again.attach(job.id)
    again.state.calibration = session.state.calibration
    again.edit.adopt(model, model.recipe(PruneNeurons(removed={0: (1, 2)})))
    session.close(stop_job=False)
    go.set()
    view = idle(again)
    assert view.suggest is not None
    assert [edit.op for edit in view.suggest.recipe.edits] == ["remove_blocks", "prune_neurons"]
    assert view.analyse.statistics is not None, "and the map knows what was analysed for it"


def narrowed(session: Session) -> float:
    session.edit.switch([1], [], [])
    session.analyse.narrow("maw", 0.5)
    estimate = measured(session).measure.estimate
    assert estimate is not None
    return estimate.perplexity


def test_compensations_are_edits_on_the_calibration_text_and_are_measured(session: Session) -> None:
    plain = narrowed(session)
    session.edit.compensate({"least_squares"}, True)
    view = session.view()
    assert view.measure.compensating and view.measure.measuring and not view.measure.measured, (
        "the old number is out of date"
    )
    view = measured(session)
    assert ops(view) == ["remove_blocks", "prune_neurons", "compensate"] and not view.uncompensated
    [*_, edit] = view.history.current.edits  # type: ignore[union-attr]
    windows = model_of(session).windows(session.state.calibration)
    assert isinstance(edit, Compensate) and edit.text == TextReference(
        source="embedded", fingerprint=windows.text_fingerprint, window=16, windows=4
    )
    assert view.measure.compensated is not None and len(view.measure.compensated.entries) == 3
    assert view.structure is not None and view.measure.estimate is not None
    expected = model_of(session).complete(view.structure, [session.state.calibration]).structure
    assert (
        view.measure.estimate.perplexity
        == model_of(session).evaluator.measure(expected, windows_of(session)).perplexity
    )
    session.edit.compensate({"linear_patch"}, True)
    assert ops(measured(session))[-2:] == ["compensate", "compensate"]
    session.edit.compensate({"bias"}, True)
    view = measured(session)
    hows = [edit.how for edit in view.history.current.edits if isinstance(edit, Compensate)]  # type: ignore[union-attr]
    assert hows == ["linear_patch", "bias"], "a bias makes up for the same loss as least squares"
    session.edit.compensate({"linear_patch", "bias", "least_squares"}, False)
    assert measured(session).measure.estimate.perplexity == plain  # type: ignore[union-attr]
    session.edit.undo()
    assert session.view().structure.compensations  # type: ignore[union-attr]


def windows_of(session: Session) -> Any:
    return model_of(session).windows(session.state.text)


def test_a_cancelled_compensation_leaves_the_recipe_and_a_later_measurement_computes_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrowed(session)
    go = waiting(monkeypatch, model_of(session).completer.compensator, "compute")
    session.edit.compensate({"least_squares"}, True)
    until(session, lambda view: view.job is not None and view.job.state == "running")
    session.cancel()
    view = idle(session)
    assert view.job is not None and view.job.state == "cancelled" and view.uncompensated and not view.measure.measured
    assert ops(view)[-1] == "compensate" and not view.measure.measuring
    go.set()
    session.measure.start()
    assert not measured(session).uncompensated


def test_an_edit_stops_the_compensation_of_the_older_recipe(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    narrowed(session)
    go = waiting(monkeypatch, model_of(session).completer.compensator, "compute")
    session.edit.compensate({"least_squares"}, True)
    view = until(session, lambda view: view.job is not None and view.job.state == "running")
    older = view.job
    assert older is not None
    session.edit.set_text(TextChoice(window=16, windows=2))
    assert not older.stop.is_set(), "another text to measure on needs the same compensation"
    session.edit.switch([1, 2], [], [])
    assert older.stop.is_set()
    go.set()
    view = measured(session)
    assert older.state == "cancelled" and view.measure.compensated is not None
    assert {entry.block for entry in view.measure.compensated.entries} == {0, 3} and view.measure.estimate is not None
    assert view.measure.estimate.tokens == 2 * 15


def test_a_recipe_cannot_name_a_file_to_compensate_on(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("Nothing that a recipe may read. " * 50)
    model, read = model_of(session), []
    theirs = model.windows(TextChoice(str(secret), 16, 4))
    reference = TextReference(source=str(secret), fingerprint=theirs.text_fingerprint, window=16, windows=4)
    recipe = model.recipe(PruneNeurons(removed={0: (1, 2)}), Compensate(how="least_squares", text=reference))
    windows = OpenModel.windows
    monkeypatch.setattr(OpenModel, "windows", lambda self, text: (read.append(text.source), windows(self, text))[1])
    session.edit.take(recipe)
    view = until(session, lambda view: bool(view.measure.error))
    assert "not the text given here" in view.measure.error and view.uncompensated and ops(view)[-1] == "compensate"
    assert set(read) == {"embedded"}
    session.edit.set_text(TextChoice(str(secret), 16, 4))
    assert measured(session).measure.compensated is not None, "the person has chosen it"
    session.edit.set_text(SMALL)
    session.edit.undo()
    session.edit.redo()
    assert measured(session).measure.compensated is not None


def test_what_cannot_be_compensated_is_refused(session: Session) -> None:
    session.suggest.start("random_hidden", Budget(width=64))
    taken(session)
    with pytest.raises(RecipeError, match="fewer channels"):
        session.edit.compensate({"least_squares"}, True)
    session.edit.undo()
    with pytest.raises(RecipeError, match="keep one"):
        session.edit.compensate({"least_squares", "bias"}, True)
    session.edit.set_text(TextChoice("pasted", 16, 1, content="One window is too few. " * 4))
    with pytest.raises(InputError, match="2 windows"):
        session.edit.compensate({"least_squares"}, True)
    assert ops(session.view()) == []


def test_a_scan_is_measured_and_predicted(session: Session) -> None:
    session.scan.start(("blocks",))
    view, model = idle(session), model_of(session)
    assert view.scan is not None and view.scan.predicted is not None
    again = scan(model.evaluator, windows_of(session), ("blocks",))
    assert view.scan.scan.document()["blocks"] == again.document()["blocks"]
    gradients = model.known_gradients(model.windows(session.state.calibration))
    assert gradients is not None
    assert torch.equal(view.scan.predicted.second.blocks, predicted_changes(gradients).second.blocks)
    session.scan.start(("mlp",))
    view = idle(session)
    assert view.scan is not None and set(view.scan.scan.removals) == {"blocks", "mlp"}
    session.edit.set_text(TextChoice(window=16, windows=2))
    assert session.view().scan is None, "it was measured on another text"
    session.edit.set_text(SMALL)
    assert session.view().scan is not None
    with pytest.raises(InputError, match="Choose"):
        session.scan.start(())


def test_what_a_cancelled_scan_has_measured_is_kept(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(monkeypatch, OpenModel, "gradients")
    session.scan.start(("attention",))
    until(session, lambda view: view.scan is not None)
    session.cancel()
    view = idle(session)
    assert view.job is not None and view.job.state == "cancelled"
    assert view.scan is not None and view.scan.predicted is None


def unpacked(view: View, folder: Path) -> Path:
    assert view.build is not None
    with zipfile.ZipFile(view.build.path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(folder)
    return folder / view.build.folder


def test_a_build_is_one_file_that_transformers_loads(session: Session, tmp_path: Path) -> None:
    narrowed(session)
    session.edit.compensate({"least_squares"}, True)
    view = measured(session)
    session.build.start(tmp_path / "downloads")
    view = idle(session)
    assert view.build is not None and view.job is not None and view.job.state == "done"
    made = unpacked(view, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(made)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert view.structure is not None and view.history is not None
    assert count == view.build.parameters == view.structure.parameters and view.build.plain
    assert view.build.bytes == view.build.path.stat().st_size > 4 * count
    assert view.build.recipe == view.history.current.key and (made / "recipe.json").is_file()
    ids = torch.arange(16).view(1, -1)
    expected = model_of(session).complete(view.structure, [session.state.calibration]).structure
    losses = model_of(session).evaluator.token_losses(expected, ids)
    found = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(-found, losses[0], rtol=0, atol=1e-4)


def seen(folder: Path) -> list[str]:
    """Names in a folder, hidden ones apart."""
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]


def test_one_build_is_kept_until_the_next_one_or_the_end(session: Session, tmp_path: Path) -> None:
    def build() -> Path:
        session.build.start(tmp_path)
        packed = idle(session).build
        assert packed is not None
        return packed.path

    first = build()
    assert seen(first.parent) == [first.name], "nothing else is left behind"
    session.edit.switch([1], [], [])
    second = build()
    assert not first.parent.exists() and second.exists() and first.name != second.name
    session.close()
    assert list(tmp_path.iterdir()) == [] and session.view().build is None


def test_a_cancelled_build_leaves_nothing(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(monkeypatch, download, "save_checkpoint")
    job = session.build.start(tmp_path)
    until(session, lambda view: view.job is not None and "waiting" in view.job.message)
    session.cancel()
    job.wait(LONG)
    view = session.view()
    assert job.state == "cancelled" and view.build is None
    assert [name for folder in tmp_path.iterdir() for name in seen(folder)] == []


def test_a_full_disk_is_one_sentence(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "zip_folder", full)
    session.build.start(tmp_path)
    view = idle(session)
    assert view.job is not None and view.job.bad_input
    assert view.job.error == "The download cannot be written (No space left on device): free some disk space."
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"no space left in .* MB needed, .* MB free"):
        session.build.start(tmp_path)
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_swept(session: Session, tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (f"{scratch.PREFIX}mine", "mine")]
    left = tmp_path / f"{scratch.PREFIX}left"
    for folder in (*kept, left):
        folder.mkdir()
        (folder / "model.zip").write_text("")
    (left / scratch.LOCK).touch()
    session.build.start(tmp_path)
    assert idle(session).build is not None
    assert not left.exists() and all((folder / "model.zip").exists() for folder in kept)


def test_a_reloaded_page_gets_the_build_and_keeps_it(
    bench: Workbench, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, model = waiting(monkeypatch, session_build, "pack"), model_of(session)
    job = session.build.start(tmp_path)
    again = Session(bench)
    assert again.attach(job.id)
    again.edit.adopt(model)
    session.close(stop_job=False)
    go.set()
    view = idle(again)
    assert view.build is not None and view.build.path.exists()
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_a_mixed_recipe_says_that_its_checkpoint_needs_code(session: Session, tmp_path: Path) -> None:
    session.edit.switch([], [1], [])
    session.build.start(tmp_path)
    packed = idle(session).build
    assert packed is not None and not packed.plain


def test_a_removed_block_is_what_choices_say(session: Session) -> None:
    choices = Choices.of(model_of(session).recipe(RemoveBlocks(blocks=(1,)), PruneNeurons(removed={1 + 1: (3,)})))
    other = choices.replaced(("remove_blocks", "prune_neurons"), (RemoveBlocks(blocks=(2,)),))
    assert other.blocks == {2} and other.neurons == {}


def test_the_text_of_a_compensation_is_the_one_it_was_made_with(session: Session) -> None:
    narrowed(session)
    session.edit.set_text(TextChoice("pasted", 16, 4, content="A text of my own, pasted and long enough. " * 4))
    session.edit.compensate({"least_squares"}, True)
    pasted = measured(session).history.current.edits[-1]  # type: ignore[union-attr]
    session.edit.set_text(SMALL)
    session.edit.compensate({"linear_patch"}, True)
    view = measured(session)
    *_, first, second = view.history.current.edits  # type: ignore[union-attr]
    assert first == pasted and isinstance(second, Compensate) and second.text == first.text  # type: ignore[union-attr]
    other = Session(session.state.bench)
    other.state.text = SMALL
    other.edit.adopt(open_model(), view.history.current)  # type: ignore[union-attr]
    assert "not the text given here" in until(other, lambda view: bool(view.measure.error)).measure.error
