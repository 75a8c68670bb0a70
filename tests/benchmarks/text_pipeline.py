"""A text corpus from 100,000 short documents: seconds and memory by step, and what 400,000 cost beside; run as

    python -m tests.benchmarks.text_pipeline            # 100,000 documents
    python -m tests.benchmarks.text_pipeline --more     # and 400,000, with the difference in memory

The documents are made up: 40 words, a third from one of eight topics, words by Zipf's law, one in fifty a near copy of
another. TF-IDF, 8 clusters with their quality, a tokenizer of 2,048, sequences of 128 tokens, n-gram lines: everything
that `data=local_text mode=laptop` does. Each build has a process of its own, whose largest resident size is reported.
The budget is 3 minutes on two cores and 2 GiB, and 300 MiB more for 400,000. One build each: there is no spread.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

DOCUMENTS, MORE_DOCUMENTS = 100_000, 400_000
BUDGET_SECONDS, BUDGET_MIB, BUDGET_MORE_MIB = 180, 2048, 300
TOPICS, WORDS_EACH = 8, 40


def write_documents(path: Path, count: int) -> None:
    """Made-up documents, the first ones the same whatever the count."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in "aeiou"])
    words = np.unique(["".join(syllables[rng.integers(70, size=n)]) for n in rng.integers(2, 5, size=30_000)])
    words = words[rng.permutation(len(words))]
    common, own = words[:8000], words[8000:]
    zipf = 1 / np.arange(1, len(common) + 1)
    zipf_own = 1 / np.arange(10, len(own) // TOPICS + 10)
    with path.open("w") as out:
        for first in range(0, count, 10_000):
            shape = (10_000, WORDS_EACH)
            topic_N = rng.integers(TOPICS, size=shape[0])
            drawn = rng.choice(len(zipf_own), p=zipf_own / zipf_own.sum(), size=shape)
            text = np.where(
                rng.random(shape) < 1 / 3,
                own[drawn * TOPICS + topic_N[:, None]],
                common[rng.choice(len(zipf), p=zipf / zipf.sum(), size=shape)],
            )
            copies = rng.permutation(10_000)[:200]
            text[copies] = text[(copies + 1) % 10_000]
            text[copies, 0] = "copied"
            for row, topic in zip(text[: count - first].tolist(), topic_N.tolist(), strict=False):
                out.write(json.dumps({"text": " ".join(row).capitalize() + ".", "topic": f"planted {topic}"}) + "\n")


def build(path: str, folder: str) -> None:
    """One build in this process: prints its facts as JSON."""
    steps: dict[str, float] = {}

    class Times(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg == "%s: done in %.1f s":
                name, seconds = record.args  # type: ignore[misc]
                steps[str(name)] = float(seconds)  # type: ignore[arg-type]

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    logging.getLogger().addHandler(Times())
    from headdyn.data.text.corpus import LocalText

    settings = LocalText(
        path=path,
        vocab_size=2048,
        sequence_length=128,
        num_topics=TOPICS,
        train_sequences=None,
        val_sequences=None,
        embedding="tfidf",
        seed=0,
    )
    start = time.perf_counter()
    settings.build(Path(folder))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    facts = settings.open(Path(folder)).facts
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "steps": steps, "facts": dict(facts)}))


def measure(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        documents = Path(scratch) / "documents.jsonl"
        write_documents(documents, count)
        folder = Path(scratch) / "corpus"
        folder.mkdir()
        command = [sys.executable, "-m", "tests.benchmarks.text_pipeline", "--build", str(documents), str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    facts = measured["facts"]
    print(f"{count} documents: {measured['seconds']:.1f} s, at most {measured['peak_mib']:.0f} MiB resident")
    print("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in measured["steps"].items()))
    print(
        f"  {facts['near_duplicates']} near duplicates, adjusted Rand with the planted topics "
        f"{facts['given_adjusted_rand']:.2f}, {(facts['train_tokens'] + facts['val_tokens']) / 1e6:.1f} M tokens"
    )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", action="store_true", help=f"also {MORE_DOCUMENTS} documents")
    parser.add_argument("--build", nargs=2, metavar=("PATH", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(*arguments.build)
        return
    few = measure(DOCUMENTS)
    print(f"  of the budget (at most 1): time {few['seconds'] / BUDGET_SECONDS:.2f} of {BUDGET_SECONDS} s, "
          f"memory {few['peak_mib'] / BUDGET_MIB:.2f} of {BUDGET_MIB} MiB")  # fmt: skip
    if arguments.more:
        many = measure(MORE_DOCUMENTS)
        more = many["peak_mib"] - few["peak_mib"]
        print(
            f"  memory beyond {DOCUMENTS} documents: {more:.0f} MiB, {more / BUDGET_MORE_MIB:.2f} of {BUDGET_MORE_MIB} MiB"
        )
        print(f"  time: {many['seconds'] / few['seconds']:.2f} times that of {DOCUMENTS} documents")


if __name__ == "__main__":
    main()
