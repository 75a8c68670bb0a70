"""`make bench`: every benchmark, one after the other, each in a process of its own. None of them is a test."""

import subprocess
import sys

BENCHMARKS = ("matrix", "corpus_generation", "attention_statistics", "patching", "tensor_lens", "text_pipeline")

for name in BENCHMARKS:
    print(f"\n== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True)
