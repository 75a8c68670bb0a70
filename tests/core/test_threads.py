from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from headdyn.core import threads
from headdyn.core.threads import in_threads


def test_threads_keep_order_and_do_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    both = threading.Barrier(2)

    def work(number: int) -> int:
        if number < 2:
            both.wait(timeout=10)  # returns only if two run at once
        time.sleep(0.001 * (number % 3))
        return number**2

    results = in_threads(work, items())
    assert next(results) == 0 and len(taken) <= 5
    assert list(results) == [number**2 for number in range(1, 40)]

    def broken(number: int) -> int:
        return 1 // (number - 5)

    with pytest.raises(ZeroDivisionError):
        list(in_threads(broken, range(40)))


def test_no_more_threads_than_asked_for() -> None:
    names = set(in_threads(lambda _: threading.current_thread().name, range(50), at_most=1))
    assert len(names) == 1
