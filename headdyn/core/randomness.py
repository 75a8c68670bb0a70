"""Named random streams: the random numbers of a run depend on its seed and on the name of what is drawn."""

import hashlib

import numpy as np


def seed_sequence(seed: int, name: str) -> np.random.SeedSequence:
    """The seed sequence of a named stream, the same on every machine and in every process.

    The name is hashed by SHA-256, as Python's `hash` differs between processes. Raises ValueError for a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; set seed to 0 or more")
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.SeedSequence(seed, spawn_key=tuple(int(word) for word in words))


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator of the stream `name` of `seed`; streams of different names or seeds are independent."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, name)))


def stream_key(seed: int, name: str) -> np.ndarray:
    """The key of a named stream for counter-based generators (Philox): two 64-bit words."""
    return seed_sequence(seed, name).generate_state(2, np.uint64)
