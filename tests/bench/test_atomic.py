from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdbench.bench.atomic import replacing, write


def test_a_file_is_written_whole_in_place_of_another_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for data in (b"first, and longer", b"second", b""):
        write(path, data)
        assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write(path, b"before")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_bytes(b"half of")
        assert temporary.parent == tmp_path and path.read_bytes() == b"before"
        raise error
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "file.json", list[tuple[str, bool]](), os.fsync

    def noted(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write(path, b"data")
    (file, before), (folder, after) = synced
    assert Path(file).parent == Path(folder) == tmp_path and not before and after
    write(path, b"can be made again", durable=False)
    assert len(synced) == 2 and path.read_bytes() == b"can be made again"


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "file.json", b"data")
