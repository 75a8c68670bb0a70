"""Restoring what a run changes in its Python process, for callers that go on afterwards: notebooks and tests."""

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from hydra.core.singleton import Singleton


@contextmanager
def process_as_before() -> Iterator[None]:
    """On leaving, restore the process: arguments, environment, logging, hooks, random numbers, Hydra's state."""
    root, environment, hydra = logging.getLogger(), dict(os.environ), Singleton.get_state()
    level, handlers = root.level, list(root.handlers)
    argv, hook, leave = sys.argv, sys.excepthook, sys.exit
    draws, numpy_draws = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        sys.argv, sys.excepthook, sys.exit = argv, hook, leave  # wandb replaces the hook and the exit
        random.setstate(draws)
        np.random.set_state(numpy_draws)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        Singleton.set_state(hydra)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def torch_as_before() -> Iterator[None]:
    """On leaving, restore torch's random numbers and its number of threads."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
