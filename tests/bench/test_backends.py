"""Cache backends must keep what was put there to the bit, stay within their limit, and never fail a run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdbench.bench.errors import InputError
from kdbench.bench.teachers.backends import CacheBackend, Disk, Memory, layout, nbytes, parse_backend

CPU = torch.device("cpu")
KINDS = ("memory", "disk")
Make = Callable[[int], CacheBackend]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A backend of so many bytes, of either kind."""
    return lambda limit: Memory(limit) if request.param == "memory" else Disk(tmp_path / "cache", limit)


def block(value: float, count: int = 1000) -> dict[str, Tensor]:
    """4 bytes times `count`."""
    return {"logits": torch.full((count,), value)}


def aged(backend: Disk, name: str, seconds: float) -> None:
    """Makes a file look unused for so long."""
    then = time.time() - seconds
    os.utime(backend.folder / f"{name}.safetensors", (then, then))


def test_backend_gives_back_every_bit_and_layout(make: Make) -> None:
    features = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    tensors = {
        "logits": torch.tensor([[1e-42, -0.0], [float("inf"), 1 / 3]]),
        "features.0": features,
        "features.1": torch.randn(4, 3, 5, 5),
        "qkv.0.1": torch.randn(8, 2, 5, 6).bfloat16(),
    }
    backend = make(2**20)
    backend.put("a", tensors)
    found = backend.get("a")
    assert found is not None and set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride()
        assert torch.equal(found[name], tensor)
    assert torch.signbit(found["logits"][0, 1]) and layout(found["features.0"]) == torch.channels_last


def test_backend_has_nothing_at_first_and_the_latest_of_a_name(make: Make) -> None:
    backend = make(2**20)
    assert backend.get("a") is None and backend.size() == 0
    backend.put("a", block(1.0))
    backend.put("a", block(2.0, count=10))
    found = backend.get("a")
    assert found is not None and torch.equal(found["logits"], block(2.0, count=10)["logits"])
    assert backend.size() < 1000


def test_longest_unused_go_first(make: Make) -> None:
    backend = make(14_000)
    for age, name in enumerate("cba"):
        backend.put(name, block(1.0))
        if isinstance(backend, Disk):
            aged(backend, name, 30 - age)
    backend.get("c")
    backend.put("d", block(1.0))
    assert [name for name in "abcd" if backend.get(name)] == ["a", "c", "d"]
    assert 12_000 <= backend.size() <= 14_000


def test_size_stays_within_the_limit(make: Make) -> None:
    backend = make(50_000)
    for number in range(40):
        backend.put(f"n{number}", block(float(number), count=1000 + 10 * number))
        assert backend.size() <= 50_000 + 50_000 // 64
    assert backend.size() > 40_000 and backend.get("n39")


def test_what_is_larger_than_the_backend_is_not_kept_and_drives_nothing_out(make: Make) -> None:
    backend = make(10_000)
    backend.put("small", block(1.0))
    backend.put("large", block(1.0, count=10_000))
    assert backend.get("large") is None and backend.get("small") is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "header", "bit"])
def test_damaged_file_is_as_good_as_none_and_is_replaced(damage: str, tmp_path: Path) -> None:
    backend = Disk(tmp_path, 2**20)
    backend.put("a", block(1.0))
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    bit = whole[:-1] + bytes([whole[-1] ^ 1])
    damages = {"empty": b"", "cut": whole[:-100], "noise": os.urandom(300), "header": whole[:20], "bit": bit}
    path.write_bytes(damages[damage])
    assert backend.get("a") is None
    backend.put("a", block(2.0))
    found = backend.get("a")
    assert found is not None and torch.equal(found["logits"], block(2.0)["logits"])


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), safetensors.SafetensorError("I/O error: os error 28")]
)
def test_full_disk_keeps_nothing_and_fails_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"part")
        raise error

    backend = Disk(tmp_path, 2**20)
    backend.put("before", block(1.0))
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    backend.put("a", block(1.0))
    assert backend.get("a") is None and backend.get("before") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["before.safetensors"]


def test_folder_that_cannot_be_made_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    backend = Disk(tmp_path / "file" / "cache", 2**20)
    backend.put("a", block(1.0))
    assert backend.get("a") is None and backend.size() == 0


def test_file_that_may_be_read_but_not_touched_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Any) -> None:
        raise PermissionError(path)

    backend = Disk(tmp_path, 2**20)
    backend.put("a", block(1.0))
    monkeypatch.setattr(os, "utime", refused)
    assert backend.get("a") is not None


def test_what_a_killed_process_left_counts_and_goes_first(tmp_path: Path) -> None:
    left = tmp_path / ".a.12345.tmp"
    left.write_bytes(bytes(8000))
    os.utime(left, (1, 1))
    backend = Disk(tmp_path, 10_000)
    assert backend.size() == 8000
    backend.put("b", block(1.0))
    assert not left.exists() and backend.get("b") is not None


def test_what_was_read_outlives_its_file(tmp_path: Path) -> None:
    backend = Disk(tmp_path, 10_000)
    backend.put("a", block(3.0))
    found = backend.get("a")
    aged(backend, "a", 10)
    backend.put("b", block(1.0))
    backend.put("c", block(1.0))
    assert not (tmp_path / "a.safetensors").exists()
    assert found is not None and torch.equal(found["logits"], block(3.0)["logits"])


def _busy(folder: Path, value: float) -> None:
    torch.set_num_threads(1)
    backend = Disk(folder, 20_000)
    for number in range(60):
        backend.put("same", block(value))
        backend.put(f"own{value}.{number}", block(value))
        found = backend.get("same")
        if found is not None and not bool((found["logits"] == found["logits"][0]).all()):
            os._exit(3)
    os._exit(0)


def test_processes_that_put_the_same_name_and_evict_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_busy, args=(tmp_path, float(value))) for value in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob(".*")) and Disk(tmp_path, 20_000).size() < 40_000


@pytest.mark.parametrize("text", ["", "disk", "disk:", "disk:0", "disk:-1", "tape:3", "memory:x", "off:1", "disk:nan"])
def test_unknown_backend_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="teacher cache"):
        parse_backend(text, tmp_path, CPU)


def test_backend_by_name(tmp_path: Path) -> None:
    disk, memory, device = (parse_backend(f"{place}:0.5", tmp_path, CPU) for place in ("disk", "memory", "device"))
    assert isinstance(disk, Disk) and disk.folder == tmp_path and disk.limit == 2**29
    assert isinstance(memory, Memory) and memory.device == CPU and isinstance(device, Memory)
    assert parse_backend("off", tmp_path, CPU) is None
    elsewhere = torch.device("meta")
    on_host, on_device = (parse_backend(f"{place}:1", tmp_path, elsewhere) for place in ("memory", "device"))
    assert isinstance(on_host, Memory) and on_host.device == CPU
    assert isinstance(on_device, Memory) and on_device.device == elsewhere
    on_device.put("a", block(1.0))
    found = on_device.get("a")
    assert found is not None and found["logits"].device.type == "meta"


def test_nbytes_adds_up() -> None:
    assert nbytes({"a": torch.zeros(3), "b": torch.zeros(5, dtype=torch.bfloat16)}) == 22
