"""What the benchmarks recorded."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from headdyn.core.numbers import fixed
from tests.experiments.records import read

WAYS = {
    "added_within": "scaled and added within the products",
    "by_halves": "symmetric products by halves",
    "from_squares": "iterated on X Xᵀ alone, in float32",
}
SETTINGS = ("probes 3 times as fast",)


def fragments(folder: Path) -> list[str]:
    steps, growth = read(folder / "training_step_before.json"), read(folder / "scaling.json")
    muon, probes = read(folder / "optimizer_step.json"), read(folder / "probes.json")
    sweeps = list(read(folder / "run_seconds.json").values())
    together = [f"{sweep['seconds']['total'] / sweep['seeds']:,.0f}" for sweep in sweeps]
    training = [fixed(100 * sweep["seconds"]["training"] / sweep["seconds"]["total"], 0) for sweep in sweeps]
    factors = ("sequences", "length", "heads", "layers")
    right = {fixed(100 * share, 1) for share in probes["accuracy"].values()}
    assert len(right) == 1
    install = read(folder / "install.json")
    mb = install["sizes"][0]["largest_mb"]
    pip = {row["extras"]: row["seconds"] for row in install["installs"]}
    answers, run = (install["installs"][0][key] for key in ("answers_seconds", "smoke_run_seconds"))
    return [
        *(step(record) for record in steps.values()),
        *(
            f"| {'`' + size['extras'] + '`' if size['extras'] else 'none'} | {size['packages']} | {size['mb']:,} | "
            f"{pip.get(size['extras'], '')}"
            for size in install["sizes"]
        ),
        f"The wheel of {install['wheel_mb']} MB",
        f"`headdyn --help` ends after {answers['headdyn --help']} s, `headdyn run --help` after "
        f"{answers['headdyn run --help']} s, a mistyped option is answered after {answers['headdyn run mode=smok']} s, "
        f"and `headdyn run mode=smoke` prints its first line after {run['first line']} s and ends after {run['end']} s",
        f"torch {mb['torch']}, pyarrow {mb['pyarrow']} and pandas {mb['pandas']} (through datasets), scipy {mb['scipy']} (through",
        f"transformers {mb['transformers']}, vl-convert-python {mb['vl-convert-python']} (figures",
        f"sympy {mb['sympy']} (through torch), numpy {mb['numpy']}, wandb {mb['wandb']}.",
        f"step of {muon['parameters'] / 1e6:.0f} M parameters: {fixed(median(muon['ratio']), 2)} times torch's speed "
        f"({fixed(muon['seconds'][0], 2)} against {fixed(muon['seconds'][1], 2)} s)",
        f"products alone are {fixed(100 * median(muon['share_of_limit']), 0)} % of it",
        f"They alone would be {fixed(muon['seconds'][1] / muon['seconds'][2], 2)} times torch's speed",
        *(
            f"{words}: {fixed(median(muon['ways'][way]['ratio']), 2)} times the package's speed, "
            f"{fixed(100 * muon['ways'][way]['difference'], 1)} % from float64"
            for way, words in WAYS.items()
        ),
        f"the package: {fixed(100 * muon['ways']['as_the_package']['difference'], 1)} % from float64",
        f"layers: {fixed(median(probes['ratio']), 1)} times scikit-learn's speed ({fixed(probes['seconds'][0], 2)} "
        f"against {fixed(probes['seconds'][1], 2)} s), both right on {right.pop()} %",
        f"The eight runs of a seed took {' and '.join(together)} seconds together, of which training with recalibration "
        f"{' and '.join(training)} %",
        *(
            f"| {what} | {' | '.join(fixed(growth[key][factor]['exponent'], 2) for factor in factors)} |"
            for what, key in (("a training step", "training step"), ("attention statistics", "attention statistics"))
        ),
    ]


def step(record: dict[str, Any]) -> str:
    """A row of the table."""
    ratio, tokens, seconds = record["ratio"], record["tokens_per_second"], record["seconds"]
    whole = seconds["headdyn gradients"] + seconds["headdyn update"]
    share = median(record["share_of_limit"])
    cells = [
        record["shape"],
        record["batch"],
        f"{fixed(median(ratio), 2)} (from {fixed(min(ratio), 2)} to {fixed(max(ratio), 2)})",
        f"{tokens['headdyn']:,.0f}",
        f"{tokens['Hugging Face']:,.0f}",
        f"{fixed(100 * share, 0)} %",
        f"{fixed(100 * seconds['headdyn update'] / whole, 0)} %",
    ]
    return f"| {' | '.join(cells)} |"
