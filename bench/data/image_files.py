"""Images left in their files: what stands for a tensor of pixels that would not fit into memory."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kdbench.bench.data.augment import crop_boxes
from kdbench.bench.errors import InputError
from kdbench.bench.seeds import generator
from kdbench.methods.base import Unsupported
from kdbench.methods.rows import FileRows

MOST_WORKERS = 16
"""Processes that decode for one run."""
DECODED = 128
"""Images that are decoded at once where all are wanted."""


def loader_workers() -> int:
    """Processes that decode beside this one: as many as torch may use threads, less one; 0 for threads of this one.

    A worker of a sweep is a daemon, which may have no children of its own: it decodes in threads.
    """
    if multiprocessing.current_process().daemon:
        return 0
    return max(1, min(MOST_WORKERS, torch.get_num_threads() - 1))


class ImageFiles:
    """N images in files, resized on reading: in the place of a tensor (N, 3, S, S) uint8 that would be too large."""

    def __init__(self, root: Path, entries: NDArray[np.void], size: int, limit: int) -> None:
        """Reads nothing yet.

        Args:
            root: the folder that holds them.
            entries: (N,) of name (the path below the root), bytes and modified (in ns), as `listed` makes them.
            size: S, to which the shorter side of an image is resized before its centre is taken.
            limit: bytes of pixels that may be decoded as a whole.
        """
        self.root, self.entries, self.size, self.limit = root, entries, size, limit
        self.shape: torch.Size = torch.Size((len(entries), 3, size, size))
        self.nbytes = self.shape.numel()

    @classmethod
    def listed(cls, root: Path, files: list[str], size: int, limit: int) -> ImageFiles:
        """These files, which lie below the root, in this order."""
        names = [os.fsencode(os.path.relpath(file, root)) for file in files]
        stats = [os.stat(file) for file in files]
        rows = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
        fields = [("name", f"S{max(map(len, names))}"), ("bytes", "<i8"), ("modified", "<i8")]
        return cls(root, np.array(rows, dtype=fields), size, limit)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.entries)

    def take(self, chosen: Tensor | slice) -> ImageFiles:
        """The images of a mask (N,) bool, of indices (M,) int64, or of a slice."""
        places = chosen if isinstance(chosen, slice) else chosen.cpu().numpy()
        return ImageFiles(self.root, self.entries[places], self.size, self.limit)

    def joined(self, others: Sequence[FileRows]) -> ImageFiles:
        """These images, then those of others.

        Raises:
            Unsupported: if they are of another folder or size.
        """
        parts = [self, *(other for other in others if isinstance(other, ImageFiles))]
        if len(parts) <= len(others) or len({(part.root, part.size) for part in parts}) > 1:
            raise Unsupported("images left in their files can be joined with those of one folder and size alone.")
        return ImageFiles(self.root, np.concatenate([part.entries for part in parts]), self.size, self.limit)

    def split(self, size: int) -> Iterator[Tensor]:
        """Pixels (size, 3, S, S) uint8 of one batch after another.

        Raises:
            InputError: if a file is not an image.
        """
        return _in_threads(self.pixels, range(len(self)), size, self.size)

    def pixels(self, place: int) -> Tensor:
        """One image (3, S, S) uint8: its shorter side resized to S, and its centre."""
        from torchvision.transforms.v2.functional import center_crop, resize

        square: Tensor = center_crop(resize(self.decode(place), [self.size]), [self.size])
        return square

    def boxed(self, place: int, draws: torch.Generator) -> Tensor:
        """A random box of one image, resized to (3, S, S) uint8."""
        from torchvision.transforms.v2.functional import resized_crop

        image = self.decode(place)
        box = crop_boxes(1, image.shape[1], image.shape[2], draws)[0].tolist()
        resized: Tensor = resized_crop(image, *box, size=[self.size, self.size])
        return resized

    def decode(self, place: int) -> Tensor:
        """One image (3, H, W) uint8 as it is.

        Raises:
            InputError: if the file is not an image.
        """
        from torchvision.io import ImageReadMode, decode_image

        file = self.root / os.fsdecode(self.entries["name"][place])
        try:
            image: Tensor = decode_image(str(file), ImageReadMode.RGB)
        except RuntimeError as error:
            raise InputError(f"{file} cannot be decoded as an image: {str(error).splitlines()[0]}") from None
        return image

    def whole(self) -> Tensor:
        """All pixels (N, 3, S, S) uint8.

        Raises:
            Unsupported: if they do not fit into memory.
        """
        if self.nbytes > self.limit:
            raise Unsupported(
                f"images that do not fit into memory are read in batches from their files, which does not allow "
                f"{self.nbytes / 2**30:.2g} GiB of pixels at once, of which {self.limit / 2**30:.2g} are free: a "
                "smaller --image-size may fit."
            )
        images = torch.empty(self.shape, dtype=torch.uint8)
        for place, pixels in zip(images.split(DECODED), self.split(DECODED), strict=True):
            place.copy_(pixels)
        return images


class FileBatches:
    """Batches of images from files in the order of each epoch: decoded ahead by timm's loader, or in threads."""

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        count: int,
        boxes: bool,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        """Starts no process yet.

        Args:
            files: the images.
            batch_size: images of a batch; the last of an epoch may be shorter.
            count: images of an epoch.
            boxes: whether an image is a random box of its file, new each epoch, or the centre.
            device: where batches are wanted.
            workers: processes that decode; 0 for threads of this one, None for `loader_workers`.
        """
        self.batch_size, self.device, self.epochs = batch_size, device, 0
        self.samples = _Samples(files, count, boxes)
        workers = loader_workers() if workers is None else workers
        self.loader = self._loader(workers) if workers else None

    def _loader(self, workers: int) -> Any:
        """Batches of whole numbers from 0 to 255; on CUDA as floats, which it copies there while others are used."""
        from timm.data.loader import create_loader, fast_collate

        cuda = self.device.type == "cuda"
        shape = self.samples.files.shape[1:]
        knobs = {"pin_memory": cuda, "use_prefetcher": cuda, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        knobs |= {"num_workers": workers, "collate_fn": fast_collate, "device": self.device}
        loader: Any = create_loader(self.samples, tuple(shape), self.batch_size, **knobs)
        (loader.loader if cuda else loader).generator = torch.Generator()
        return loader

    def epoch(self, order: Tensor, seed: int) -> Iterator[Tensor]:
        """Images (B, 3, S, S) uint8 of one batch after another, on the device.

        Args:
            order: (count,) int64, places of the images.
            seed: of the boxes; each image's depends on it and on the image's place alone.

        Raises:
            RuntimeError: if another epoch was begun before this one was over, which workers cannot serve.
        """
        if self.loader is None:
            look = functools.partial(self.samples.look, seed=seed)
            for images in _in_threads(look, order.tolist(), self.batch_size, self.samples.files.size):
                yield images.to(self.device)
            return
        self.samples.order.copy_(order)
        self.samples.seed.fill_(seed)
        self.epochs = mine = self.epochs + 1
        for images, _ in self.loader:
            if self.epochs != mine:
                raise RuntimeError("workers read one epoch at a time from files, but another has been begun.")
            yield images.to(self.device, torch.uint8)


class _Samples(Dataset[tuple[Tensor, int]]):
    """The images of one epoch by their position in it; workers share its order and seed with us, and so can live on."""

    def __init__(self, files: ImageFiles, count: int, boxes: bool) -> None:
        self.files, self.boxes = files, boxes
        self.order = torch.zeros(count, dtype=torch.int64).share_memory_()
        self.seed = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        place = int(self.order[position])
        return self.look(place, int(self.seed)), place

    def look(self, place: int, seed: int) -> Tensor:
        """One image (3, S, S) uint8 as it looks in this epoch."""
        return self.files.boxed(place, generator(seed, "box", place)) if self.boxes else self.files.pixels(place)


def _in_threads(look: Callable[[int], Tensor], places: Sequence[int], count: int, size: int) -> Iterator[Tensor]:
    """Images (B, 3, S, S) uint8 of one batch after another, while threads prepare the next."""

    def put(image: Tensor, place: int) -> None:
        image.copy_(look(place))

    def begun(chosen: Sequence[int]) -> tuple[Tensor, list[Future[None]]]:
        images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
        return images, [threads.submit(put, *pair) for pair in zip(images, chosen, strict=True)]

    threads = _decoders(os.getpid(), torch.get_num_threads())
    chunks = [places[start : start + count] for start in range(0, max(1, len(places)), count)]
    ahead = begun(chunks[0])
    for chosen in (*chunks[1:], ()):
        (images, jobs), ahead = ahead, begun(chosen)
        for job in jobs:
            job.result()
        yield images


@functools.lru_cache(maxsize=1)
def _decoders(process: int, count: int) -> ThreadPoolExecutor:
    """Threads that decode, in each of which torch uses one: the number it has when that thread first asks for it."""
    threads, all_have_asked = ThreadPoolExecutor(count), threading.Barrier(count)
    torch.set_num_threads(1)
    list(threads.map(lambda _: torch.get_num_threads() + all_have_asked.wait(), range(count)))
    torch.set_num_threads(count)
    return threads
