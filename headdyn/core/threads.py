"""Work in other threads: in several at once, for numpy, which releases the interpreter lock, or with a time limit."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def in_threads(function: Callable[[In], Out], items: Iterable[In], *, at_most: int | None = None) -> Iterator[Out]:
    """Yields `function(item)` for every item, in order, computed on all cores or `at_most` of them.

    Items are read only as threads become free; an executor's own `map` would read all of them at once.
    """
    threads = min(usable_cores(), at_most or usable_cores())
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Out]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def within(seconds: float, call: Callable[[], Out]) -> Out:
    """The call's result. Raises TimeoutError after so many seconds, and any error of the call.

    It is for requests to servers: looking up a host's name can take longer than a request's own limit.
    """
    future: Future[Out] = Future()

    def ask() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
