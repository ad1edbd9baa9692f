from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch
from kdbench.results.store.attempt import Attempt
from kdbench.results.store.files import read_lines, sha256
from kdbench.results.store.run_store import RunStore
from tests.results.conftest import SPEC, epoch, outcome

TEXT = json.dumps(SPEC)


def begin(store: RunStore, key: str = "k", seconds: float = 0.0) -> Attempt:
    return store.attempt(key, TEXT, lambda _: None, checkpoint_seconds=seconds)


def test_finish_publishes_outcome_epochs_and_weights(store: RunStore, finish: Callable[..., None]) -> None:
    finish("k", outcome(0.9))
    run = store.get("k")
    assert run is not None and run.finished and run.status == "done"
    assert [e.number for e in run.epochs] == [1, 2, 3]
    assert run.outcome is not None and run.outcome.headline("last", "test") == 0.9
    assert store.weights("run:k") == b"weights of k"
    assert run.folder is not None and not list(run.folder.glob("checkpoint-*"))


def test_attempt_resumes_after_last_whole_checkpoint(store: RunStore) -> None:
    with begin(store) as first:
        first.epoch(epoch(1), lambda: b"one")
        first.epoch(epoch(2), lambda: b"two")
    with begin(store) as second:
        assert second.checkpoint() == b"two"
        assert [e.number for e in second.kept] == [1, 2]
        assert second.folder != first.folder


def test_the_disk_is_waited_for_at_checkpoints_alone(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the last checkpoint is made again in any case, and epochs may take less than the disk."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with begin(store, seconds=1000.0) as attempt:
        synced.clear()
        attempt.epoch(epoch(1), lambda: b"one")
        assert synced == []
        attempt.clock.seconds = 0.0
        attempt.epoch(epoch(2), lambda: b"two")
    assert synced[-1] == str(attempt.folder / "records.jsonl") and len(synced) == 3


def test_checkpoint_without_its_record_is_not_used(store: RunStore) -> None:
    """A death between the checkpoint's rename and the record's line repeats the epoch; it never skips one."""
    with begin(store) as first:
        first.epoch(epoch(1), lambda: b"one")
        first._save(2, b"two")
    with begin(store) as second:
        assert second.checkpoint() == b"one"


def test_only_the_last_two_checkpoints_are_kept(store: RunStore) -> None:
    with begin(store) as attempt:
        for number in range(1, 6):
            attempt.epoch(epoch(number, of=9), lambda: b"state")
        assert len(list(attempt.folder.glob("checkpoint-*"))) == 2


def test_bad_middle_line_is_named(store: RunStore) -> None:
    with begin(store) as attempt:
        attempt.epoch(epoch(1), lambda: b"one")
    path = attempt.folder / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0garbage\n" + whole)
    with pytest.raises(InputError, match="line 3, is damaged"):
        read_lines(path)


def test_second_process_is_refused_while_a_run_is_held(store: RunStore) -> None:
    code = f"""
    from pathlib import Path
    from kdbench.results.store.run_store import RunStore
    RunStore(Path({str(store.root)!r})).attempt("k", "{{}}", lambda _: None)
    """
    with begin(store):
        result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert "another process is carrying out run k" in result.stderr
    with begin(store):
        pass


def test_killed_process_leaves_the_run_free_and_interrupted(store: RunStore) -> None:
    code = f"""
    import time
    from pathlib import Path
    from kdbench.results.store.run_store import RunStore
    from tests.results.conftest import epoch
    store = RunStore(Path({str(store.root)!r}))
    attempt = store.attempt("k", '{TEXT}', lambda _: None, checkpoint_seconds=0)
    attempt.epoch(epoch(1), lambda: b"one")
    print("ready", flush=True)
    time.sleep(60)
    """
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    process.stdout.readline()
    running = store.get("k")
    assert running is not None and running.status == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped = store.get("k")
    assert stopped is not None and stopped.status == "interrupted" and len(stopped.epochs) == 1
    with begin(store) as attempt:
        assert attempt.checkpoint() == b"one"


def test_failed_attempt_says_why_and_is_not_a_result(store: RunStore) -> None:
    with begin(store) as attempt:
        attempt.end("failed", "ValueError: no", "traceback")
    run = store.get("k")
    assert run is not None and not run.finished
    assert (run.status, run.reason) == ("failed", "ValueError: no")


def test_result_removes_earlier_attempts_and_names_its_own(store: RunStore, finish: Callable[..., None]) -> None:
    with begin(store) as first:
        first.epoch(epoch(1), lambda: b"one")
    finish("k", outcome(0.9), epochs=0)
    done = json.loads((store.root / "runs" / "k" / "DONE.json").read_text())
    assert done["attempt"] == "attempt-2" and not first.folder.exists()
    folder = store.root / "runs" / "k" / "attempt-2"
    assert done["files"] == {name: sha256((folder / name).read_bytes()) for name in done["files"]}


def test_damaged_weights_are_refused_with_the_way_out(store: RunStore, finish: Callable[..., None]) -> None:
    finish("k", outcome(0.9))
    (store.root / "runs" / "k" / "attempt-1" / "last.safetensors").write_bytes(b"weights of j")
    with pytest.raises(InputError, match=r"is damaged .* remove .* trained anew"):
        store.weights("run:k")


def test_imported_weights_are_kept_by_their_hash(store: RunStore) -> None:
    reference = store.import_weights(b"tensors")
    assert reference == f"sha256:{sha256(b'tensors')}"
    assert store.weights(reference) == b"tensors"
    with pytest.raises(InputError, match="missing"):
        store.weights("sha256:00")


def test_unfinished_run_has_no_weights(store: RunStore) -> None:
    with begin(store), pytest.raises(InputError, match="not finished"):
        store.weights("run:k")


def test_unwritable_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written.*--store"):
        RunStore(tmp_path / "file" / "store")


def test_watch_sees_an_epoch_after_it_is_kept(store: RunStore) -> None:
    seen: list[int] = []

    def watch(record: Epoch) -> None:
        run = store.get("k")
        assert run is not None and run.epochs[-1].number == record.number
        seen.append(record.number)

    with store.attempt("k", TEXT, watch) as attempt:
        attempt.epoch(epoch(1), lambda: b"")
    assert seen == [1]


def test_checkpoints_are_at_least_the_given_seconds_apart(store: RunStore) -> None:
    with begin(store, seconds=0.2) as attempt:
        attempt.epoch(epoch(1, of=9), lambda: b"early")
        time.sleep(0.25)
        attempt.epoch(epoch(2, of=9), lambda: b"due")
        attempt.epoch(epoch(3, of=9), lambda: b"early")
        assert [path.name for path in attempt.folder.glob("checkpoint-*")] == ["checkpoint-000002.pt"]
