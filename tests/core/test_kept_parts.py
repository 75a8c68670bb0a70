"""Parts of a long computation: kept where it was stopped, however it was, and read only by the same computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headdyn.core import kept_parts
from headdyn.core.kept_parts import Part, keeping, parts
from headdyn.core.store import StageInterruptedError

INPUTS = [np.arange(4.0)]


class Computed:
    """Six parts that count how often each is computed; `breaks_at` fails in its place."""

    def __init__(self, breaks_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.calls: list[int] = []
        self.breaks_at, self.error = breaks_at, error

    def __call__(self) -> list[Callable[[], Part]]:
        def part(number: int) -> Callable[[], Part]:
            def compute() -> Part:
                if number == self.breaks_at:
                    raise self.error
                self.calls.append(number)
                # Transposed: its axes do not lie in memory as they would when they are read.
                return {"value": np.random.default_rng(number).normal(size=(3, 2)).T}

            return compute

        return [part(number) for number in range(6)]


def done(work: Computed, *, inputs=INPUTS, total: int = 6) -> np.ndarray:
    compute = work()
    every = list(parts("counting", "numbers", total, 1, lambda at: compute[at.start](), inputs))
    assert [rows.start for rows, _ in every] == list(range(total))
    return np.stack([part["value"] for _, part in every])


def run(folder: Path, work: Computed, *, identity: str = "commit", stop_after: int = 99, **change) -> np.ndarray:
    with keeping(folder, identity, lambda: len(work.calls) >= stop_after):
        return done(work, **change)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_computation_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, error: type[BaseException]) -> None:
    whole = run(tmp_path / "whole", Computed())
    with pytest.raises(error):
        run(tmp_path / "kept", Computed(breaks_at=4, error=error))
    again = Computed()
    assert np.array_equal(run(tmp_path / "kept", again), whole) and again.calls == [4, 5]


def test_it_stops_when_asked_to_and_stopping_twice_loses_nothing(tmp_path: Path) -> None:
    first, second, third = Computed(), Computed(), Computed()
    with pytest.raises(StageInterruptedError):
        run(tmp_path, first, stop_after=2)
    with pytest.raises(StageInterruptedError):
        run(tmp_path, second, stop_after=3)
    whole = run(tmp_path, third)
    assert (first.calls, second.calls, third.calls) == ([0, 1], [2, 3, 4], [5])
    assert np.array_equal(whole, np.stack([part()["value"] for part in Computed()()]))


def test_a_part_that_a_kill_left_half_written_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_parts, "SAVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(kept_parts, "time", SimpleNamespace(monotonic=lambda: 0.0))  # each part says how long it took
    whole = run(tmp_path, Computed())
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for size in range(0, len(content), 137):
        path.write_bytes(content[:size])
        again = Computed()
        assert np.array_equal(run(tmp_path, again), whole)
        assert again.calls == list(range(6 - len(again.calls), 6)) and again.calls
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change", [{"identity": "other commit"}, {"inputs": [np.arange(4.0) + 1e-12]}, {"total": 5}], ids=str
)
def test_other_work_reads_nothing_of_it(tmp_path: Path, change: dict) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Computed(breaks_at=4))
    work = Computed()
    run(tmp_path, work, **change)
    assert work.calls == list(range(change.get("total", 6)))


@pytest.mark.parametrize("place", range(1, 100, 7))
def test_a_damaged_part_and_what_stands_behind_it_are_computed_again(tmp_path: Path, place: int) -> None:
    whole = run(tmp_path / "whole", Computed())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Computed(breaks_at=5))
    (path,) = tmp_path.glob("*.parts")
    content = bytearray(path.read_bytes())
    content[40 + (len(content) - 40) * place // 100] ^= 1  # behind the 40 bytes that say whose parts these are
    path.write_bytes(content)
    again = Computed()
    assert np.array_equal(run(tmp_path, again), whole) and again.calls[0] == place * 5 // 100


def test_each_computation_of_an_analysis_has_its_own_and_short_ones_leave_no_file(tmp_path: Path) -> None:
    run(tmp_path, Computed())
    assert not list(tmp_path.iterdir())
    work, other = Computed(), Computed(breaks_at=0)
    with pytest.raises(KeyboardInterrupt), keeping(tmp_path, "commit", lambda: False):
        done(work)
        done(other)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["0000.parts"] > 6 * 48 and sizes["0001.parts"] == 40  # of the second nothing was done


def test_without_a_place_nothing_is_kept() -> None:
    assert len(done(Computed())) == 6


def test_a_part_that_only_a_pickle_could_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"), keeping(tmp_path, "commit", lambda: False):
        list(parts("counting", "numbers", 1, 1, lambda at: {"value": np.array([{}])}))


@pytest.mark.parametrize("twice", [True, False], ids=["a part written twice", "a part lost"])
def test_what_an_interrupted_write_left_is_noticed(tmp_path: Path, twice: bool) -> None:
    whole = run(tmp_path / "whole", Computed())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "kept", Computed(breaks_at=4))
    (path,) = (tmp_path / "kept").iterdir()
    content, pieces = path.read_bytes(), []
    while content:
        size = 8 + int.from_bytes(content[:8], "little")
        pieces.append(content[:size])
        content = content[size:]
    assert len(pieces) == 5  # the digest, and four parts
    path.write_bytes(b"".join([*pieces, *pieces[2:]] if twice else [pieces[0], pieces[1], *pieces[3:]]))
    again = Computed()
    assert np.array_equal(run(tmp_path / "kept", again), whole)
    assert again.calls == ([4, 5] if twice else [1, 2, 3, 4, 5])


def test_an_interruption_between_two_writes_writes_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses once, while parts are written; those written before stand there once."""
    whole, opened, open_file = run(tmp_path / "whole", Computed()), [], Path.open

    def refusing(path: Path, *arguments, **named):
        opened.append(path)
        if len(opened) == 3:
            raise OSError("no space")
        return open_file(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path / "kept", Computed(breaks_at=4))
    monkeypatch.undo()
    assert np.array_equal(run(tmp_path / "kept", Computed()), whole)
