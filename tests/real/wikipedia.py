"""What a run on text measured, for experiments/real_model: `python -m tests.real.wikipedia RUN` prints it as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from headdyn.core.run_folder import RunRecord
from tests.experiments.manifests import manifest_of_run

PREFIXES = ("loss_", "bigram_", "in_context_", "repeat_gain_", "selectivity", "tensorlens", "raw", "rollout", "carry")
ROLES = ("sink_rate_top", "previous_token_top", "induction_top")
COMMAND = (
    "python -m headdyn.run model=huggingface model.name=FILE.gguf data=local_text "
    "data.path=../shared/data/wikipedia_articles.jsonl analysis=[loss,attention,tensorlens] "
    "analysis.loss.sequences=64 analysis.attention.sequences=64 analysis.tensorlens.sequences=24 "
    "analysis.tensorlens.tokens=32 analysis.tensorlens.targets=4 patterns_kept=4"
)


if __name__ == "__main__":
    run = RunRecord.read(Path(sys.argv[1]))
    facts = run.manifest["corpus"]["facts"]
    found = {
        "command": COMMAND,
        "manifest": manifest_of_run(run),
        "quantisation": run.manifest["checkpoint"]["quantisation"],
        "seconds": run.manifest["seconds"],
        "corpus": {name: value for name, value in facts.items() if isinstance(value, int | float | str)},
        "summary": {name: row for name, row in run.scalars.items() if name in ROLES or name.startswith(PREFIXES)},
    }
    print(json.dumps(found, indent=1))
