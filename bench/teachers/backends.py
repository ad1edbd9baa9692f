"""Where the answers of teachers are kept: in memory, on the device, or on disk; the longest unused go first."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdbench.bench.atomic import replacing
from kdbench.bench.errors import InputError

Tensors = dict[str, Tensor]

DEFAULT_CACHE = "disk:8"
CHANNELS_LAST = ":channels_last"
"""Ends the name of a tensor in a file that was so laid out: losses add up in the order of memory, to other bits."""

SHA256 = "sha256"
"""What a file's header calls the digest of its tensors."""


class CacheBackend(Protocol):
    """Keeps tensors by name, up to so many bytes in all."""

    limit: int

    def get(self, name: str) -> Tensors | None:
        """What was put there, if it is still there."""

    def put(self, name: str, tensors: Tensors) -> None:
        """Keeps tensors, in place of earlier ones of that name; others may have to go."""

    def size(self) -> int:
        """Bytes that are kept."""


class Memory:
    """A backend in this process, on the CPU or another device."""

    def __init__(self, limit: int, device: torch.device | None = None) -> None:
        """Keeps nothing yet.

        Args:
            limit: bytes.
            device: where tensors are kept; by default where they come from.
        """
        self.limit, self.device = limit, device
        self.kept: OrderedDict[str, Tensors] = OrderedDict()

    def get(self, name: str) -> Tensors | None:
        """See CacheBackend."""
        if name in self.kept:
            self.kept.move_to_end(name)
        return self.kept.get(name)

    def put(self, name: str, tensors: Tensors) -> None:
        """See CacheBackend."""
        self.kept.pop(name, None)
        if nbytes(tensors) > self.limit:
            return
        self.kept[name] = {key: tensor.to(self.device or tensor.device) for key, tensor in tensors.items()}
        while self.size() > self.limit:
            self.kept.popitem(last=False)

    def size(self) -> int:
        """See CacheBackend."""
        return sum(nbytes(tensors) for tensors in self.kept.values())


class Disk:
    """A backend in a folder that processes share: memory-mapped safetensors files, written whole or not at all."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Goes on with what is in the folder.

        Args:
            folder: made with the first file.
            limit: bytes.
        """
        self.folder, self.limit = folder, limit
        self.unchecked = 0
        """Bytes that may be written before the folder's size is looked at again; other processes write there too."""

    def get(self, name: str) -> Tensors | None:
        """See CacheBackend; a file that cannot be read, or is not what was written, is as good as none."""
        path = self._path(name)
        if (tensors := as_written(path)) is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return dict(_unpacked(*item) for item in tensors.items())

    def put(self, name: str, tensors: Tensors) -> None:
        """See CacheBackend; a disk that is full keeps nothing."""
        if nbytes(tensors) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(name), durable=False) as temporary:
                packed = dict(_packed(*item) for item in tensors.items())
                safetensors.torch.save_file(packed, temporary, {SHA256: sha256_of(packed)})
        except (OSError, safetensors.SafetensorError):
            return
        self.unchecked -= nbytes(tensors)
        if self.unchecked < 0:
            self._make_room()
            self.unchecked = self.limit // 64

    def size(self) -> int:
        """See CacheBackend."""
        return sum(size for _, size, _ in self._files())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _files(self) -> list[tuple[float, int, str]]:
        """When each file was last used, its bytes and its path; the longest unused first."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
        return sorted(found)

    def _make_room(self) -> None:
        files = self._files()
        size = sum(size for _, size, _ in files)
        for _, bytes_of_it, path in files:
            if size <= self.limit:
                return
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
            size -= bytes_of_it


def as_written(path: Path) -> Tensors | None:
    """The tensors of a file of the backend on disk; None if it cannot be read, or is not what was written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get(SHA256)
            tensors: Tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None
    return tensors if digest == sha256_of(tensors) else None


def parse_backend(text: str, folder: Path, device: torch.device) -> CacheBackend | None:
    """A backend by the name of its place and its size in GiB: disk:8, memory:2, device:4; or off.

    Args:
        text: the name.
        folder: of a backend on disk.
        device: of a backend on the device.

    Raises:
        InputError: if the text is something else.
    """
    place, _, size = text.partition(":")
    try:
        limit = int(float(size) * 2**30)
    except ValueError:
        limit = 0
    if text == "off":
        return None
    if place not in ("disk", "memory", "device") or limit <= 0:
        raise InputError(f"a teacher cache is off, or disk, memory or device and its GiB, as disk:8, but got {text!r}.")
    if place == "disk":
        return Disk(folder, limit)
    return Memory(limit, device if place == "device" else torch.device("cpu"))


def layout(tensor: Tensor) -> torch.memory_format:
    """How a tensor is laid out in memory, where that is more than one way for its values."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def _packed(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Name and tensor as they are in a file, which knows one layout."""
    if layout(tensor) == torch.channels_last:
        key, tensor = key + CHANNELS_LAST, tensor.permute(0, 2, 3, 1)
    return key, tensor.cpu().contiguous()


def _unpacked(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The inverse of `_packed`."""
    last = key.endswith(CHANNELS_LAST)
    return key.removesuffix(CHANNELS_LAST), tensor.permute(0, 3, 1, 2) if last else tensor


def sha256_of(tensors: Tensors) -> str:
    """The SHA-256 of the names, types, shapes and bytes of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nbytes(tensors: Tensors) -> int:
    """Bytes that tensors take."""
    return sum(tensor.nbytes for tensor in tensors.values())
