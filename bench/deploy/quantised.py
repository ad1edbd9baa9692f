"""An ONNX file in eight bits, made by onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.data.image_files import ImageFiles
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.deploy.formats import refused, required
from kdbench.bench.deploy.onnx_graph import IMAGES
from kdbench.bench.deploy.student import Student
from kdbench.bench.errors import unknown
from kdbench.methods.rows import count, split, take

WAYS = ("static", "dynamic")
"""static measures the range of every activation beforehand, dynamic as it runs."""
CALIBRATION = 256
"""Training images, evenly drawn, on which static ranges are measured; the test part has no say."""
INT8 = "model_int8.onnx"


def check_way(way: str) -> None:
    """Checks the name of a way of quantisation.

    Raises:
        InputError: for another one.
    """
    if way not in WAYS:
        raise unknown("way of --int8", way, WAYS)


def quantise(student: Student, folder: Path, way: str, data: ImageSplits) -> Path:
    """Writes the student's model.onnx again in eight bits.

    Args:
        student: what was written.
        folder: where.
        way: one of `WAYS`.
        data: whose training images give ranges, without their labels.

    Raises:
        InputError: if onnxruntime cannot quantise the graph.
    """
    quantization, target = required("onnxruntime.quantization"), folder / INT8
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared = Path(scratch) / "prepared.onnx"
        try:
            quantization.quant_pre_process(str(folder / "model.onnx"), str(prepared))
            if way == "dynamic":
                kind = quantization.QuantType.QUInt8  # onnxruntime's convolutions take no signed weights here
                quantization.quantize_dynamic(str(prepared), str(target), weight_type=kind)
            else:
                quantization.quantize_static(str(prepared), str(target), _reader(data, quantization), per_channel=True)
        except Exception as error:  # onnxruntime raises what the graph makes it
            raise refused(student, f"int8 ({way})", error) from None
    return target


def _reader(data: ImageSplits, quantization: Any) -> Any:
    """Training images one batch after another, as onnxruntime asks for them."""
    images = data.train.inputs
    assert isinstance(images, torch.Tensor | ImageFiles)
    chosen = torch.linspace(0, count(images) - 1, min(CALIBRATION, count(images)), dtype=torch.float64).round().long()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        batches: Iterator[Any] = iter(split(take(images, chosen), 32))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what onnxruntime logs for those who might quantise otherwise."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
