"""The memory and speed model against counted tensors and hand-made arithmetic; device files against their schema."""

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.model.describe import describe
from surgery.errors import DeviceError, InputError
from surgery.fit.devices import FOLDER, Devices, read_device
from surgery.fit.fit import fit
from surgery.fit.kv_cache import kv_cache_bytes
from surgery.fit.runtimes import LLAMA_CPP, TRANSFORMERS, activation_bytes
from surgery.fit.speed import BLOCK_OPERATIONS, DECODE_SHARES, PREFILL_SHARES, PROMPT_TOKENS
from surgery.fit.weight_types import TYPES, stored
from surgery.recipe.recipe import Recipe
from surgery.structure.resolve import resolve
from surgery.structure.structure import dense
from tests.tiny_models import _GQA, _make, build

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
"""Rows of whole blocks of every type."""


def recipe(*edits):
    return Recipe.read({"schema": "model-surgery/recipe/1", "model": {"id": "tiny"}, "edits": list(edits)})


def device(**changes):
    return Devices().get("raspberry-pi-5-8gb").model_copy(update=changes)


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
    found = fit(structure, here, 256, "F32")
    read = found.weights_bytes + found.kv_cache_bytes
    matrices = structure.parameters - 4 * 2 * 48 - 48
    by_bandwidth = here.bandwidth_bytes_per_second.value / read
    by_compute = here.compute_operations_per_second.value / (2 * matrices)
    assert found.speed.decode_bound == pytest.approx(min(by_bandwidth, by_compute))
    assert found.speed.decode <= found.speed.decode_bound and found.speed.prefill <= found.speed.prefill_bound


def test_a_prompt_needs_the_head_once_and_the_attention_over_what_was_before():
    structure = dense(describe(build("llama")))
    here = device()
    blocks = 4 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80)
    attention = 4 * 4 * 48 * PROMPT_TOKENS // 2
    operations = 2 * (blocks + 128 * 48 / PROMPT_TOKENS) + attention
    peak = here.compute_operations_per_second.value
    assert fit(structure, here, 64, "F32").speed.prefill_bound == pytest.approx(peak / operations)


def test_only_a_cpu_in_float32_is_expected_of_something_and_energy_is_power_over_speed():
    structure = dense(describe(build("llama")))
    cpu, gpu = fit(structure, device(), 64).speed, fit(structure, Devices().get("nvidia-t4"), 64).speed
    assert cpu.basis == "expected" and gpu.basis == "bound"
    assert (gpu.decode, gpu.prefill) == (gpu.decode_bound, gpu.prefill_bound)
    assert fit(structure, device(), 64, "torchao-int8").speed.basis == "bound"
    assert cpu.energy_joules_per_token == pytest.approx(device().power_watts.value / cpu.decode)
    assert fit(structure, device(power_watts=None), 64).document()["energy_joules_per_token"] is None


@pytest.mark.parametrize("name", ["raspberry-pi-5-8gb", "nvidia-t4", "esp32-s3-n16r8"])
def test_more_context_needs_more_and_a_smaller_model_less(name):
    architecture, here = describe(build("llama")), Devices().get(name)
    whole = dense(architecture)
    smaller = resolve(
        architecture,
        recipe(
            {"op": "prune_neurons", "removed": {str(block): "0-31" for block in range(4)}},
            {"op": "prune_kv_groups", "removed": {"0": "0"}},
        ),
    )
    parts = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "overhead_bytes")
    for kind in ("F16", "Q8_0", "torchao-int8"):
        sizes = [[getattr(fit(whole, here, context, kind), part) for part in parts] for context in (1, 64, 512, 4096)]
        assert sizes == sorted(sizes) and sizes[0][1:3] < sizes[-1][1:3]
        less = [getattr(fit(smaller, here, 512, kind), part) for part in parts]
        assert all(mine <= whole_one for mine, whole_one in zip(less, sizes[2], strict=True)) and less < sizes[2]


def test_a_gpu_holds_a_row_of_logits_for_every_token_of_a_batch():
    structure = dense(describe(build("llama")))
    kind = TYPES["F16"]
    on_cpu = activation_bytes(structure, TRANSFORMERS, kind, 512)
    assert activation_bytes(structure, TRANSFORMERS, kind, 512, gpu=True) - on_cpu == 4 * 128 * (512 - 1)
    # llama.cpp reserves both parts in one place: here the blocks need more than the logits
    on_cpu = activation_bytes(structure, LLAMA_CPP, kind, 4096)
    assert activation_bytes(structure, LLAMA_CPP, kind, 4096, gpu=True) == on_cpu - 4 * 128


def test_types_of_the_kv_cache():
    wide = describe(_make(LlamaForCausalLM, LlamaConfig, _GQA, head_dim=32, max_position_embeddings=256))
    structure = dense(wide)
    sixteen = kv_cache_bytes(structure, 256, "F16")
    assert kv_cache_bytes(structure, 256, "F32") == 2 * sixteen
    assert kv_cache_bytes(structure, 256, "Q8_0") == sixteen * 34 // 64
    assert kv_cache_bytes(structure, 256, "Q4_0") == sixteen * 18 // 64
    found = fit(structure, device(), 256, "F16", "Q4_0")
    assert (found.kv_type, found.kv_cache_bytes, found.notes) == ("Q4_0", sixteen * 18 // 64, ())
    narrow = fit(dense(describe(build("llama"))), device(), 256, "F16", "Q4_0")
    assert narrow.kv_type == "F16" and any("Q4_0" in note for note in narrow.notes)
    plain = fit(structure, device(), 256, "safetensors-F32", "Q4_0")
    assert plain.kv_type == "F32" and plain.runtime == "transformers"
    with pytest.raises(InputError, match="Q5_0"):
        fit(structure, device(), 256, "F16", "Q5_0")


def test_a_sliding_cache_holds_the_window_and_the_batch_that_is_read():
    structure = dense(describe(build("gemma2")))
    full, sliding = (structure.architecture.blocks[index].attention for index in (1, 0))
    token = 2 * full.kv_heads * full.head_size * 2
    assert (full.window, sliding.window) == (None, 8)
    assert kv_cache_bytes(structure, 100) == 2 * token * 100 + 2 * token * 8
    assert kv_cache_bytes(structure, 1000, batch=512) == 2 * token * 1024 + 2 * token * 768
    assert kv_cache_bytes(structure, 20, batch=20) == 4 * token * 256


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


def test_every_type_that_a_file_can_hold_has_a_speed():
    held = set()
    for architecture in (describe(build("llama")), describe(_make(LlamaForCausalLM, LlamaConfig, _GQA, **WIDE))):
        structure = dense(architecture)
        for kind in TYPES.values():
            found = fit(structure, device(), 64, kind).speed
            assert 0 < found.decode <= found.decode_bound and 0 < found.prefill <= found.prefill_bound
            held |= set(stored(structure, replace(kind, importance=True)).types.values()) - {""}
    assert held <= set(DECODE_SHARES) and set(DECODE_SHARES) == set(PREFILL_SHARES)


def test_decoding_takes_what_the_kernels_and_the_blocks_take():
    structure = dense(describe(build("llama_tied")))
    here = device()
    matrices = 4 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80) + 128 * 48
    at_peak = 2 * matrices / DECODE_SHARES["F32"] + 4 * BLOCK_OPERATIONS
    expected = here.compute_operations_per_second.value / at_peak
    assert fit(structure, here, 64, "F32").speed.decode == pytest.approx(expected)


def test_what_was_measured_on_a_device_stands_before_the_built_in_shares(tmp_path):
    structure = dense(describe(build("llama_tied")))
    plain = device()
    measured = {"decode_shares": {"F32": 0.05}, "prefill_shares": {"F32": 0.3}, "block_seconds": 1e-5, "threads": 2}
    path = tmp_path / "mine.json"
    document = json.loads(plain.model_dump_json(by_alias=True)) | {"llama_cpp": measured | {"source": "a test"}}
    path.write_text(json.dumps(document))
    mine = read_device(path)
    peak = plain.compute_operations_per_second.value
    matrices = 4 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80) + 128 * 48
    expected = 1 / (2 * matrices / 0.05 / peak + 4 * 1e-5)
    assert fit(structure, mine, 64, "F32").speed.decode == pytest.approx(expected)
    assert fit(structure, mine, 64, "F32").speed.prefill < fit(structure, plain, 64, "F32").speed.prefill
    other = fit(structure, mine, 64, "F16").speed  # a type that was not measured keeps the built-in share
    assert 0 < other.decode <= other.decode_bound
    path.write_text(json.dumps(document | {"llama_cpp": measured | {"source": "a test", "block_seconds": -1}}))
    with pytest.raises(DeviceError, match=r"llama_cpp\.block_seconds"):
        read_device(path)
