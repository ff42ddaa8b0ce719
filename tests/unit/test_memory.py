"""The memory and speed model against counted tensors and hand-made arithmetic; device files against their schema."""

import json

import pytest

from analysis.describe import describe
from surgery.devices import FOLDER, Devices, read_device
from surgery.errors import DeviceError, InputError
from surgery.memory import TYPES, fit, kv_cache_bytes, weights_by_class
from surgery.narrow import build_block
from surgery.recipe import Recipe
from surgery.resolving import resolve
from surgery.structure import dense
from tests.tiny_models import FAMILIES, build


def recipe(*edits):
    return Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)})


def device(**changes):
    return Devices().get("raspberry-pi-5-8gb").model_copy(update=changes)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_weights_are_the_tensors_of_the_edited_model(family):
    model = build(family)
    architecture = describe(model)
    structure = resolve(
        architecture,
        recipe(
            {"op": "remove_blocks", "blocks": "1"},
            {"op": "prune_neurons", "removed": {"0": "0-9", "2": "5"}},
            {"op": "prune_kv_groups", "removed": {"3": "0"}},
        ),
    )
    assert sum(weights_by_class(dense(architecture), TYPES["F32"]).values()) == 4 * architecture.parameters
    sources = [architecture.blocks[spec.source] for spec in structure.blocks]
    blocks = [
        build_block(model.get_submodule(source.module), source, spec)
        for source, spec in zip(sources, structure.blocks, strict=True)
    ]
    kept = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    outside = architecture.parameters - sum(block.parameters for block in architecture.blocks)
    assert structure.parameters == kept + outside
    assert sum(weights_by_class(structure, TYPES["F32"]).values()) == 4 * structure.parameters
    assert sum(weights_by_class(structure, TYPES["F16"]).values()) == 2 * structure.parameters


def test_kv_cache_of_removed_attention_costs_nothing_and_windows_bound_it():
    architecture = describe(build("llama"))
    attention = architecture.blocks[0].attention
    one_block = 2 * attention.kv_heads * attention.head_size * 100 * 2
    assert kv_cache_bytes(dense(architecture), 100) == 4 * one_block
    without = resolve(architecture, recipe({"op": "remove_attention", "blocks": "0,2"}))
    assert kv_cache_bytes(without, 100) == 2 * one_block
    fewer = resolve(architecture, recipe({"op": "prune_kv_groups", "removed": {"1": "0"}}))
    assert kv_cache_bytes(fewer, 100) == 4 * one_block - one_block // attention.kv_heads
    sliding = describe(build("mistral"))
    assert kv_cache_bytes(dense(sliding), 100) == kv_cache_bytes(dense(sliding), sliding.blocks[0].attention.window)


def test_quantised_bytes_follow_the_blocks_and_fall_back_on_odd_rows():
    kind = TYPES["Q8_0"]
    assert kind.matrix_bytes(64 * 10, 64) == 640 // 32 * 34
    assert kind.matrix_bytes(50 * 10, 50) == 2 * 500


def test_fit_adds_up_and_follows_the_device():
    structure = dense(describe(build("llama")))
    found = fit(structure, device(), 128, "F16")
    document = found.document()
    parts = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "overhead_bytes")
    assert document["needed_bytes"] == sum(document[part] for part in parts)
    assert document["spare_bytes"] == document["capacity_bytes"] - document["needed_bytes"]
    assert document["fits"] is (document["spare_bytes"] >= 0) is True
    small = device()
    small = small.model_copy(
        update={"memory_bytes": small.memory_bytes.model_copy(update={"value": small.reserved_bytes.value + 1000})}
    )
    assert fit(structure, small, 128).fits is False
    assert fit(structure, small, 128).spare_bytes < 0


def test_a_weight_store_holds_weights_but_no_working_data():
    microcontroller = Devices().get("siracusa")
    found = fit(dense(describe(build("llama"))), microcontroller, 16)
    working = found.kv_cache_bytes + found.activation_bytes + found.overhead_bytes
    assert found.spare_bytes == min(found.capacity_bytes - found.needed_bytes, microcontroller.working_bytes - working)


def test_decoding_is_bound_by_bandwidth_or_compute():
    structure = dense(describe(build("llama_tied")))
    here = device()
    found = fit(structure, here, 64, "F32")
    read = found.weights_bytes + found.kv_cache_bytes
    by_bandwidth = here.bandwidth_bytes_per_second.value / read
    by_compute = here.compute_operations_per_second.value / (2 * structure.parameters)
    assert found.decode_tokens_per_second == pytest.approx(min(by_bandwidth, by_compute))


@pytest.mark.parametrize(("context", "kind"), [(0, "F16"), (10, "F17")])
def test_bad_numbers_are_refused(context, kind):
    with pytest.raises(InputError):
        fit(dense(describe(build("llama"))), device(), context, kind)


def test_device_files_are_valid_sourced_and_many():
    files = sorted(FOLDER.glob("*.json"))
    assert len(files) >= 15
    for path in files:
        found = read_device(path)
        assert found.id == path.stem
        assert found.reserved_bytes.value < found.memory_bytes.value
        for figure in (found.memory_bytes, found.bandwidth_bytes_per_second, found.compute_operations_per_second):
            assert len(figure.source) > 10


def test_this_computer_is_measured_once():
    devices = Devices()
    first = devices.get("this-computer")
    assert first is devices.get("this-computer")
    assert first.bandwidth_bytes_per_second.value > 1e8
    assert first.compute_operations_per_second.value > 1e8


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other/1"},
        {"memory_bytes": {"value": -1, "source": "x"}},
        {"memory_bytes": {"value": 1}},
        {"surprise": 1},
        {"kind": "toaster"},
        {"id": "../etc/passwd"},
    ],
)
def test_bad_device_files_are_refused_in_one_sentence(change, tmp_path):
    document = json.loads((FOLDER / "nvidia-t4.json").read_text()) | change
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DeviceError) as error:
        read_device(path)
    assert "\n" not in str(error.value) and "mine.json" in str(error.value)


@pytest.mark.parametrize("name", ["nope", "../presets/devices/nvidia-t4", "missing.json"])
def test_unknown_devices_are_named(name):
    with pytest.raises(DeviceError):
        Devices().get(name)


def test_a_persons_own_file_works(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text((FOLDER / "nvidia-t4.json").read_text().replace("nvidia-t4", "mine"))
    assert Devices().get(str(path)).id == "mine"
