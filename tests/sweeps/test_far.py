"""A store that a worker reaches by its line alone: records, checkpoints, weights, methods, and errors as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.bench.record import Epoch, Outcome
from kdbench.results.store.files import sha256
from kdbench.results.store.run_store import Busy, RunStore
from kdbench.results.store.sources import keep_source, kept_source
from kdbench.sweeps.scheduling.far import FarStore, Home
from kdbench.sweeps.scheduling.line import packed, unpacked
from kdbench.sweeps.scheduling.workers import fault_of

SPEC = '{"method":"student","student":{"name":"a"},"data":{"name":"digits"}}'


class Line:
    """A line whose other end answers at once; what goes over it is bytes."""

    def __init__(self, home: Home) -> None:
        self.home, self.answers = home, list[bytes]()

    def send(self, kind: str, place: int, content: Any, *files: bytes) -> None:
        (kind, _, asked), sent = unpacked(packed((kind, place, content), *files))
        assert kind == "store"
        self.answers.append(self.home.answer(asked, sent))

    def recv(self) -> tuple[Any, list[bytes]]:
        return unpacked(self.answers.pop())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(RunStore(tmp_path / "store"))


@pytest.fixture
def far(home: Home, tmp_path: Path) -> FarStore:
    line: Any = Line(home)
    return FarStore(line, tmp_path / "far")


def epoch(number: int) -> Epoch:
    return Epoch(
        number=number,
        of=3,
        stage="train",
        losses={"student/task": float("nan")},
        train=0.5,
        validation=0.5,
        learning_rate=0.1,
        samples=1,
        teacher_forwards=0,
        seconds=0.1,
    )


def test_messages_and_files_come_as_they_went() -> None:
    files = [b"", b"\n\x00binary\n", b"x" * 100_000]
    assert unpacked(packed(["a", {"b": 1}], *files)) == (["a", {"b": 1}], files)


def test_run_goes_on_from_the_checkpoint_at_home_and_its_result_is_there(home: Home, far: FarStore) -> None:
    seen: list[int] = []
    with far.attempt("k", SPEC, lambda each: seen.append(each.number), checkpoint_seconds=0) as first:
        assert first.checkpoint() is None and first.kept == []
        first.epoch(epoch(1), lambda: b"state of 1")
        first.epoch(epoch(2), lambda: b"state of 2")
    run = home.store.get("k")
    assert run is not None and [each.number for each in run.epochs] == seen == [1, 2]
    with far.attempt("k", SPEC, lambda _: None) as second:
        assert second.checkpoint() == b"state of 2" and [each.number for each in second.kept] == [1, 2]
        second.epoch(epoch(3), lambda: pytest.fail("none is due"))
        assert not far.holds("k")
        second.finish(Outcome(status="done"), {"last": b"weights", "best": b"more"})
    assert far.holds("k") and home.attempts == {}
    with far.attempt("other", SPEC, lambda _: None) as other:
        assert other.weights("run:k") == b"weights"


def test_failure_is_noted_at_home_with_its_traceback(home: Home, far: FarStore) -> None:
    with far.attempt("k", SPEC, lambda _: None) as attempt:
        attempt.end("failed", "ValueError: shapes", "Traceback ...")
    run = home.store.get("k")
    assert run is not None and (run.status, run.reason) == ("failed", "ValueError: shapes")


def test_fault_of_an_error_at_home_is_the_same_far_away(home: Home, far: FarStore) -> None:
    with (
        home.store.attempt("k", SPEC, lambda _: None),
        pytest.raises(Busy, match="another process is carrying out run k"),
    ):
        far.attempt("k", SPEC, lambda _: None)
    with far.attempt("other", SPEC, lambda _: None) as attempt:
        with pytest.raises(Exception, match="is not finished") as asked:
            attempt.weights("run:k")
        assert fault_of(asked.value) == "input"
        with pytest.raises(OSError, match="are missing") as lost:
            attempt.weights(f"sha256:{sha256(b'')}")
        assert fault_of(lost.value) == "machine"


def test_what_a_dead_worker_held_is_given_free(home: Home, far: FarStore) -> None:
    far.attempt("k", SPEC, lambda _: None)
    with pytest.raises(Busy):
        home.store.attempt("k", SPEC, lambda _: None)
    home.close()
    home.store.attempt("k", SPEC, lambda _: None).__exit__()


def test_method_from_outside_comes_over_the_line_once(
    home: Home, far: FarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = b"# a method's file"
    keep_source(home.store.root, "mine", code)
    name = f"Mine@{sha256(code)[:8]}"
    far.fetch(f'{{"method":"{name}"}}')
    path = kept_source(far.root, name.partition("@")[2])
    assert path is not None and path.name == "mine.py" and path.read_bytes() == code
    monkeypatch.setattr(home, "answer", lambda *_: pytest.fail("it is at hand"))
    far.fetch(f'{{"method":"{name}"}}')
