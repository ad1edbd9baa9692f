"""All epochs of all runs of a sweep as one compressed Parquet file, the same bytes for the same epochs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.bench.record import Epoch, plain

Timed = tuple[float, Epoch]
"""When an epoch ended, in seconds since 1970, and its record."""

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("number", pa.int32()),
        ("of", pa.int32()),
        ("stage", pa.string()),
        ("losses", pa.map_(pa.string(), pa.float64())),
        ("train", pa.float64()),
        ("validation", pa.float64()),
        ("learning_rate", pa.float64()),
        ("samples", pa.int64()),
        ("teacher_forwards", pa.int64()),
        ("teacher_cached", pa.int64()),
        ("seconds", pa.float64()),
        ("time", pa.float64()),
    ]
)


def packed(runs: Mapping[str, Iterable[Timed]]) -> bytes:
    """The Parquet file of the epochs of runs by key, in the order of the runs."""
    rows = [{"key": key, "time": time, **plain(epoch)} for key, epochs in runs.items() for time, epoch in epochs]
    file = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd", compression_level=19, write_statistics=False
    )
    return file.getvalue()


def unpacked(file: bytes) -> dict[str, list[Timed]]:
    """The epochs of runs by key, from a Parquet file.

    Raises:
        ValueError: if it is no such file.
    """
    runs: dict[str, list[Timed]] = {}
    row: dict[str, Any]
    for row in pq.read_table(io.BytesIO(file)).to_pylist(maps_as_pydicts="strict"):
        key, time = row.pop("key"), row.pop("time")
        runs.setdefault(key, []).append((time, Epoch.model_validate(row)))
    return runs
