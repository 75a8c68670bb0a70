"""What the answer lens measured on comparisons, for experiments/real_model.

`python -m tests.real.comparisons RUN RUN` prints it as JSON: runs with wording=corrupted and with wording=clean.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.run_folder import RunRecord
from tests.experiments.manifests import manifest_of_run

CARRIED = "answer_carried_excess_nats"
PARTS = ("value", "ci_low", "ci_high", "null", "n")


def per_head(run: RunRecord) -> list[dict[str, Any]]:
    """What each head carries beyond other pairs' answers, with its q, in the order of layers and heads."""
    rows = run.heads().where(metric=CARRIED).rows()
    rows.sort(key=lambda row: (row["layer"], row["head"]))
    return [{"head": f"{row['layer']}.{row['head']}", "nats": row["value"], "q": row["q"]} for row in rows]


def main(runs: list[RunRecord]) -> dict[str, Any]:
    found, carried = {}, []
    for run in runs:
        heads = per_head(run)
        carried.append([head["nats"] for head in heads])
        sums = {name: row for name, row in run.scalars.items() if name.startswith("answer_") and "share" not in name}
        found[run.manifest["config"]["analysis"]["answer_lens"]["wording"]] = {
            "manifest": manifest_of_run(run),
            "seconds": run.manifest["seconds"]["answer_lens"],
            "heads": len(heads),
            "significant": [head for head in heads if head["q"] < 0.05],
            "sums": {name: {part: row[part] for part in PARTS if part in row} for name, row in sums.items()},
        }
    return {**found, "correlation_of_wordings": float(np.corrcoef(carried)[0, 1])}


if __name__ == "__main__":
    print(json.dumps(main([RunRecord.read(Path(name)) for name in sys.argv[1:]]), indent=1))
