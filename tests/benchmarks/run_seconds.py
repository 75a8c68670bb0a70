"""What whole runs of a finished sweep took, stage by stage, from their manifests: training, recalibration, analyses.

    python -m tests.benchmarks.run_seconds SWEEP… --out experiments/speed

Seconds are of the clock, on the machine and beside whatever else it did. A stage that another run had built costs
nothing; a sweep's own table, effects and page are not counted.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def main() -> None:
    """Write run_seconds.json where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for run_seconds.json")
    arguments = parser.parse_args()
    record = {sweep.name: seconds(sweep) for sweep in arguments.sweeps}
    text = json.dumps(record, indent=1) + "\n"
    (arguments.out / "run_seconds.json").write_text(text, encoding="utf-8")
    print(text)


def seconds(sweep: Path) -> dict[str, Any]:
    """Seconds of a sweep's complete runs together, by stage; `per_seed` of one seed of all its conditions."""
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(sweep.glob("*/manifest.json"))]
    manifests = [manifest for manifest in manifests if manifest["status"] == "complete"]
    stages: dict[str, float] = defaultdict(float)
    for manifest in manifests:
        for stage, spent in manifest["seconds"].items():
            stages[stage] += spent
    seeds = {manifest["seed"] for manifest in manifests}
    config = manifests[0]["config"]
    return {
        "command": json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["command"],
        "mode": config["mode"]["name"],
        "data": manifests[0]["factors"].get("data"),
        "threads": manifests[0]["machine"]["threads"],
        "device": manifests[0]["machine"]["device"],
        "runs": len(manifests),
        "seeds": len(seeds),
        "seconds": {stage: round(spent, 1) for stage, spent in sorted(stages.items())},
        "per_seed": round(stages["total"] / len(seeds), 1),
    }


if __name__ == "__main__":
    main()
