"""Make it fit: every option fits, is measured as it would be stored, in order; and what a device has room for."""

from __future__ import annotations

from functools import cache
from threading import Event
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from surgery.errors import Cancelled, InputError
from surgery.fit.devices import Device, Devices
from surgery.fit.fit import fit
from surgery.fit.room import largest_shape, room_on
from surgery.models.loading import Loaded, fingerprint
from surgery.recipe.edits import Compensate
from surgery.recipe.recipe import Recipe
from surgery.recipe.storage import Quantize
from surgery.recipe.texts import TextChoice
from surgery.search.make_it_fit import FitOptions, Fitting, make_it_fit
from surgery.structure.structure import dense
from surgery.workbench.open_model import OpenModel
from tests.tiny_models import _GQA, _make, build
from tests.tiny_workbench import CharacterTokenizer, open_model

CONTEXT = 32
MEASURED = TextChoice(window=16, windows=3)
CALIBRATION = TextChoice(window=16, windows=4, purpose="calibration")
LADDER = ("F16", "Q8_0", "Q4_0")


@cache
def tiny() -> OpenModel:
    """Weights large enough that what a cut takes shows, and rows of whole blocks."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 320, "num_attention_heads": 8}
    model = _make(LlamaForCausalLM, LlamaConfig, _GQA, **sizes, num_hidden_layers=6, tie_word_embeddings=True)
    loaded = Loaded(
        "tiny", None, model.requires_grad_(False), CharacterTokenizer(), describe(model), fingerprint(model)
    )
    return OpenModel(loaded)


def device_with(room: int, name: str = "raspberry-pi-5-8gb") -> Device:
    """A device on which that many bytes are left for the dense tiny model's weights."""
    device = Devices().get(name)
    found = fit(dense(tiny().architecture), device, CONTEXT)
    memory = device.reserved_bytes.value + found.needed_bytes - found.weights_bytes + room
    return device.model_copy(update={"memory_bytes": device.memory_bytes.model_copy(update={"value": memory})})


def weights(type_name: str) -> int:
    return fit(dense(tiny().architecture), device_with(0), CONTEXT, type_name).weights_bytes


def run(device: Device, recipe: Recipe | None = None, limit: int = 8, **more: Any) -> Fitting:
    model = tiny()
    options = FitOptions(LADDER, limit)
    windows = model.windows(MEASURED)
    given = recipe or model.recipe()
    return make_it_fit(model, given, device, CONTEXT, "F16", options, windows, CALIBRATION, **more)


def check(found: Fitting, device: Device) -> None:
    """Every option is what it says."""
    model = tiny()
    losses = [option.estimate.nll for option in found.options]
    assert losses == sorted(losses) and found.complete
    for option in found.options:
        structure = model.resolve(option.recipe)
        again = fit(structure, device, CONTEXT, option.type)
        assert option.fit == again and again.fits
        assert option.parameters == structure.parameters
        done = model.complete(structure, [CALIBRATION])
        assert option.estimate.nll == pytest.approx(
            model.evaluator.measure(done.structure, model.windows(MEASURED)).nll
        )
        (quantised,) = (edit for edit in option.recipe.edits if isinstance(edit, Quantize))
        assert quantised.type == option.type


def test_what_fits_as_it_is_is_offered_beside_cuts_of_the_others() -> None:
    device = device_with(weights("Q8_0") + 100)
    found = run(device)
    check(found, device)
    ways = [(option.how, option.type) for option in found.options]
    whole = tiny().architecture.parameters
    assert sorted(ways) == [
        ("as it is", "Q4_0"),
        ("as it is", "Q8_0"),
        ("fewer blocks", "F16"),
        ("narrower MLPs", "F16"),
    ]
    for option in found.options:
        assert (option.parameters == whole) is (option.how == "as it is")
    assert found.room.missing_bytes == weights("F16") - weights("Q8_0") - 100


def test_a_cut_is_the_smallest_that_fits_and_is_compensated() -> None:
    device = device_with(int(weights("Q4_0") * 0.8))
    found = run(device)
    check(found, device)
    by_type = {(option.how, option.type): option for option in found.options}
    narrower, shorter = by_type["narrower MLPs", "Q4_0"], by_type["fewer blocks", "Q4_0"]
    (refit,) = (edit for edit in narrower.recipe.edits if isinstance(edit, Compensate))
    (patch,) = (edit for edit in shorter.recipe.edits if isinstance(edit, Compensate))
    assert (refit.how, patch.how) == ("least_squares", "linear_patch")
    removed = len(tiny().architecture.blocks) - len(tiny().resolve(shorter.recipe).blocks)
    block = weights("Q4_0") // 7
    assert removed == 1 or shorter.fit.spare_bytes < block
    widths = {len(spec.neurons) % 32 for spec in tiny().resolve(narrower.recipe).blocks}
    assert widths == {0}
    assert narrower.parameters < tiny().architecture.parameters


def test_the_limit_bounds_what_is_measured_and_the_least_compressed_come_first() -> None:
    found = run(device_with(weights("F16") + 100), limit=2)
    assert {(option.how, option.type) for option in found.options} == {("as it is", "F16"), ("as it is", "Q8_0")}
    both = run(device_with(weights("Q4_0") + 100), limit=2)
    assert {option.how for option in both.options} == {"as it is", "narrower MLPs"}


def test_a_recipe_keeps_its_edits_but_not_its_types() -> None:
    model = tiny()
    given = model.recipe({"op": "remove_blocks", "blocks": "2"}, {"op": "quantize", "type": "Q8_0"})
    found = run(device_with(weights("F16")), given, limit=1)
    (option,) = found.options
    assert option.type == "F16" and option.parameters == model.resolve(given).parameters
    assert [edit.op for edit in option.recipe.edits] == ["remove_blocks", "quantize"]


def test_where_nothing_fits_it_is_said_what_would() -> None:
    device = device_with(2000)
    found = run(device)
    assert found.options == () and found.complete and found.refused
    assert all("\n" not in sentence for sentence in found.refused)
    document = found.document()
    assert document["options"] == [] and "would have to go" in document["room"]["words"]


def test_a_stop_keeps_what_was_measured() -> None:
    stop, seen = Event(), []

    def found(fitting: Fitting) -> None:
        seen.append(fitting)
        stop.set()

    left = run(device_with(weights("F16") + 100), stop=stop, found=found)
    assert len(left.options) == 1 and left == seen[-1] and not left.complete

    def report(share: float, words: str) -> None:
        raise Cancelled("Cancelled.")

    nothing = run(device_with(weights("F16") + 100), report=report)
    assert nothing.options == () and not nothing.complete and nothing.room.missing_bytes == 0


def test_progress_never_goes_back() -> None:
    shares: list[float] = []
    run(device_with(int(weights("Q4_0") * 0.9)), report=lambda share, words: shares.append(share))
    assert shares and shares[0] >= 0 and shares[-1] <= 1
    measuring = [share for share in shares if share >= 0.15]
    assert measuring == sorted(measuring)


def test_families_that_llama_cpp_cannot_run_are_refused_by_name() -> None:
    model = open_model("opt")
    found = make_it_fit(
        model, model.recipe(), Devices().get("raspberry-pi-5-8gb"), CONTEXT, "F16", FitOptions(LADDER, 2),
        model.windows(MEASURED), CALIBRATION,
    )  # fmt: skip
    assert found.options == () and any("opt" in sentence for sentence in found.refused)


@pytest.mark.parametrize("options", [FitOptions(limit=0), FitOptions(largest_cut=1.0), FitOptions(types=("Q9",))])
def test_senseless_wishes_are_refused(options: FitOptions) -> None:
    with pytest.raises(InputError):
        make_it_fit(tiny(), tiny().recipe(), device_with(0), CONTEXT, "F16", options, tiny().windows(MEASURED))


def test_room_is_what_weights_may_take() -> None:
    for room in (weights("Q4_0") // 2, weights("Q8_0")):
        device = device_with(room)
        told = room_on(dense(tiny().architecture), device, CONTEXT)
        assert told.room_bytes == room and told.missing_bytes == weights("F16") - room
        for share in told.shares:
            in_type = fit(dense(tiny().architecture), device, CONTEXT, share.type)
            beside = in_type.needed_bytes - in_type.weights_bytes
            assert share.share == pytest.approx((device.capacity_bytes - beside) / weights(share.type))
            assert (share.parameters_to_go == 0) is in_type.fits
    assert "from Q8_0 on" in told.words()


def test_a_microcontroller_is_told_what_it_cannot_and_what_it_can() -> None:
    device = Devices().get("siracusa")
    structure = dense(describe(build("llama")))
    assert room_on(structure, device, 64).words() == "It fits."
    crowded = room_on(structure, device, 2**20)
    assert crowded.room_bytes < 0 and "bytes more than the device has" in crowded.words()
    shape = largest_shape(device, 64, "F16", 32_000)
    assert shape is not None and shape.needed_bytes <= device.capacity_bytes
    larger = largest_shape(Devices().get("esp32-s3-n16r8"), 64, "F16", 32_000)
    assert larger is not None and larger.parameters > shape.parameters
