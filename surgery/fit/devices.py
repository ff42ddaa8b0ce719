"""Devices: memory, bandwidth and compute of the places a model may have to fit, from files or measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.files import size_of
from surgery.errors import DeviceError

FOLDER = Path(__file__).resolve().parents[2] / "presets" / "devices"
SCHEMA = "model-surgery/device/1"
THIS_COMPUTER = "this-computer"
LARGEST_FILE = 64 * 2**10

Clock = Callable[[], float]
Kind = Literal["microcontroller", "single-board computer", "phone", "edge GPU", "laptop", "GPU", "server"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Strict):
    """A number and where it comes from."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str = Field(min_length=1, max_length=1000)


class Reserved(_Strict):
    """Like a figure, but may be zero."""

    value: float = Field(ge=0, allow_inf_nan=False)
    source: str = Field(min_length=1, max_length=1000)


class Compute(Figure):
    """Peak operations a second (a multiply-add is two) in a number type."""

    type: Literal["float32", "float16", "bfloat16", "int8"]


Share = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class Kernels(_Strict):
    """What llama.cpp reaches on a device, measured there by `benchmarks.kernels`.

    Shares are of the device's peak compute, by GGML type: with one row of input (decoding), and with 512.
    """

    decode_shares: dict[str, Share]
    prefill_shares: dict[str, Share]
    block_seconds: float = Field(ge=0, le=1, allow_inf_nan=False)
    """What a block takes besides its matrices for one decoded token, threads that wait for each other included."""
    threads: int = Field(ge=1, le=4096)
    source: str = Field(min_length=1, max_length=1000)


class Device(_Strict):
    """A device file. Bytes, bytes per second, operations per second, watts."""

    schema_: Literal["model-surgery/device/1"] = Field(default="model-surgery/device/1", alias="schema")
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")
    name: str = Field(min_length=1, max_length=100)
    kind: Kind
    memory_bytes: Figure
    weight_store_bytes: Figure | None = None
    reserved_bytes: Reserved
    bandwidth_bytes_per_second: Figure
    compute_operations_per_second: Compute
    power_watts: Figure | None = None
    amx: bool = False
    """Whether the processor has the AMX unit, for which llama.cpp lays weights out anew."""
    llama_cpp: Kernels | None = None
    notes: str = Field(default="", max_length=1000)

    @property
    def working_bytes(self) -> int:
        """Memory for anything, after what the system keeps."""
        return max(0, int(self.memory_bytes.value - self.reserved_bytes.value))

    @property
    def capacity_bytes(self) -> int:
        """Working memory and the store that holds weights only."""
        return self.working_bytes + int(self.weight_store_bytes.value if self.weight_store_bytes else 0)


def read_device(path: Path) -> Device:
    """A device file. Raises DeviceError: missing, too large or not of the schema; one sentence names the place."""
    try:
        size_of(path, DeviceError)
        if path.stat().st_size > LARGEST_FILE:
            raise DeviceError(f"{path.name} is larger than {LARGEST_FILE // 1024} KiB: it cannot be a device file.")
        return Device.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DeviceError(f"The device file {str(path)!r} cannot be read ({error.strerror}): check the path.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DeviceError(f"{path.name} is not a device file: at {place}, {first['msg'].lower()}.") from None


class Devices:
    """The devices at hand: the files of `presets/devices`, and this computer, measured on first use."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._here: Device | None = None
        self._lock = Lock()

    def names(self) -> dict[str, str]:
        """Name by id, small devices first; this computer at the end."""
        devices = sorted(
            (read_device(path) for path in self.folder.glob("*.json")), key=lambda item: item.capacity_bytes
        )
        return {device.id: device.name for device in devices} | {THIS_COMPUTER: "This computer (measured)"}

    def get(self, name: str) -> Device:
        """A device by id, or from a person's own file by path. Raises DeviceError: unknown or invalid."""
        if name == THIS_COMPUTER:
            with self._lock:
                self._here = self._here or measure_this_computer()
                return self._here
        if name.endswith(".json"):
            return read_device(Path(name))
        path = self.folder / f"{name}.json"
        if "/" in name or "\\" in name or not path.is_file():
            raise DeviceError(f"There is no device {name!r}: use one of {', '.join(self.names())}, or a .json file.")
        return read_device(path)


def measure_this_computer(threads: int | None = None, clock: Clock = time.perf_counter) -> Device:
    """Memory from the system; bandwidth by reading 256 MB, compute by a matrix product, the best of a few tries.

    Args:
        threads: that work; as many as there are cores when None, which is what a program that runs a model takes.
        clock: tells seconds. `time.process_time` with one thread measures one core that others use too.
    """
    memory = psutil.virtual_memory()
    block = torch.ones(64 * 2**20)
    matrix = torch.randn(1024, 1024)
    before, threads = torch.get_num_threads(), threads or psutil.cpu_count(logical=False) or 1
    torch.set_num_threads(threads)
    try:
        read = _best_seconds(lambda: block.sum(), 5, clock)
        product = _best_seconds(lambda: matrix @ matrix, 8, clock)
    finally:
        torch.set_num_threads(before)
    return Device.model_validate(
        {
            "id": THIS_COMPUTER,
            "name": "This computer (measured)",
            "kind": "server",
            "memory_bytes": {"value": memory.total, "source": "the operating system"},
            "reserved_bytes": {"value": memory.total - memory.available, "source": "in use when measured"},
            "bandwidth_bytes_per_second": {
                "value": block.numel() * 4 / read,
                "source": f"measured: summing 256 MiB with {threads} threads",
            },
            "compute_operations_per_second": {
                "value": 2 * 1024**3 / product,
                "type": "float32",
                "source": f"measured: 1024 x 1024 matrix product with {threads} threads",
            },
            "amx": has_amx(),
        }
    )


def has_amx() -> bool:
    """Whether llama.cpp uses the AMX unit of this computer's processor."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_int8") and known.get("avx512_vnni"))


def _best_seconds(work: Callable[[], object], tries: int, clock: Clock) -> float:
    best = float("inf")
    for _ in range(tries):
        begun = clock()
        work()
        best = min(best, clock() - begun)
    return best
