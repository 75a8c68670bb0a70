"""What the W&B dashboards show: the matrix, emergence over checkpoints, one run in depth. Plain data, no client.

Keys are those that runs log (core/tracking.py). A scalar with an interval is a nested summary: `selectivity.value`,
`.ci_low`, `.null`. A run's config has its `factors` nested, and of every checkpoint the `checkpoint_step` as a number.
W&B's app puts each top-level entry of a config into {"value": ...}: filters and columns are written here as the app has
them, `factors.value.attention`. Groups, axes and sort keys say `factors.attention`; the client, or the app, inserts it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headdyn.core.numbers import level, quantity
from headdyn.sweep.factors import CHOICES
from headdyn.sweep.outcomes import _EARLIER as OUTCOMES

FACTORS = {name: choice.pair for name, choice in CHOICES.items()}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One panel. `keys` are logged metrics of a line, else summary entries, `config:...` of parallel, media, tables."""

    kind: Literal["line", "bar", "scatter", "parallel", "images", "table", "artifact", "compare"]
    title: str = ""
    keys: tuple[str, ...] = ()
    by: str = ""  # of bars the config entry that groups runs, of a scatter the x axis (`config:...` or a summary entry)
    log_x: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under one heading. In a report, `arms` is a factor each of whose levels is a run set of its own."""

    title: str
    text: str
    charts: tuple[Chart, ...]
    arms: str = ""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """`where` filters the runs in the client's own filter language, `groups` are config entries that pool runs."""

    name: str
    title: str
    text: str
    sections: tuple[Section, ...]
    where: str = ""
    groups: tuple[str, ...] = ()
    order: str = ""  # the config entry to sort by, ascending; empty is the newest run first
    columns: tuple[str, ...] = ()  # shown in the workspace's table of runs
    most_runs: int = 100


def _label(metric: str) -> str:
    q = quantity(metric)  # at W&B values are as they were recorded, so that percents and points are shares
    return f"{q.label} ({q.unit if q.scale == 1 else 'share'})"


def _bars(factor: str, arms: str) -> Section:
    """Every outcome by a factor's level, its null beside it where that is not 0 by construction."""
    with_null = ("within_ratio", "entropy_nats", "probe_accuracy_middle", "sink_rate")
    charts = [
        Chart(
            kind="bar",
            title=_label(outcome),
            keys=(f"{outcome}.value", *([f"{outcome}.null"] if outcome in with_null else [])),
            by=f"factors.{factor}",
        )
        for outcome in OUTCOMES
    ]
    low, high = map(level, FACTORS[factor])
    text = (
        f"{high} against {low}: means over runs, whiskers from the lowest run to the highest, which is no interval: "
        "runs of a bar differ in other factors too. Effects within a seed, with intervals: the sweep's report.html."
    )
    return Section(title=f"Effects of {factor}", text=text, charts=tuple(charts), arms=arms)


def _over_steps(metrics: Sequence[str]) -> tuple[Chart, ...]:
    return tuple(
        Chart(kind="scatter", title=_label(m), keys=(f"{m}.value",), by="config:checkpoint_step", log_x=True)
        for m in metrics
    )


def _tables(*analyses: str) -> tuple[Chart, ...]:
    return tuple(Chart(kind="table", title=name, keys=(f"heads/{name}",)) for name in analyses)


_TRAINING = Section(
    title="Training",
    text="Over the training step. A recalibration after dropping positions is not part of these curves.",
    charts=tuple(
        Chart(kind="line", title=title, keys=keys)
        for title, keys in {
            "loss (nats)": ("val_loss_nats", "train_loss_nats"),
            "gradient norm": ("grad_norm",),
            "learning rates": ("muon_lr", "adamw_lr"),
            "tokens per second": ("tokens_per_second",),
        }.items()
    ),
)
_TOPIC_IMAGES = Chart(kind="images", title="Heads: topics and roles", keys=("attention/topics", "attention/roles"))
_PATTERNS = Chart(kind="images", title="Attention patterns of telling heads", keys=("patterns/telling_heads",))
_INSTRUMENTS = tuple(f"{name}_selectivity_no_self.value" for name in ("raw", "rollout", "tensorlens"))
_PROMPTS = (
    *("plain_success", "even_success", "odd_success", "all_success", "source_success"),
    *("strength", "strength_nats", "control_strength_nats"),
)
_SILHOUETTES = ("qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette")
_STEPS = "One point a checkpoint, over its training step on a log axis, which has no place for step 0."

MATRIX = Dashboard(
    name="matrix",
    title="headdyn 2x2x2 matrix",
    text="What do the order of the data, grouped queries and dropped positions do to attention heads? Runs of other "
    "modes, data or protocols are pooled with these unless one sweep is chosen (--sweep, or the filter by group).",
    where="Config('factors.value.model') == 'mini_qwen3'",
    groups=tuple(f"factors.{factor}" for factor in FACTORS),
    columns=(
        *(f"config:factors.value.{factor}" for factor in (*FACTORS, "mode", "seed")),
        *(f"summary:{outcome}.value" for outcome in OUTCOMES),
    ),
    sections=(
        _bars("data_ordering", arms="position_enc"),
        _bars("attention", arms="data_ordering"),
        _bars("position_enc", arms="data_ordering"),
        Section(
            title="Factors and outcomes",
            text="Every run a line through its conditions and what came of them.",
            charts=(
                Chart(
                    kind="parallel",
                    title="conditions to outcomes",
                    keys=(
                        *(f"config:factors.{factor}" for factor in FACTORS),
                        *(f"{m}.value" for m in ("loss_nats", "selectivity", "probe_accuracy_middle")),
                    ),
                ),
            ),
        ),
        Section(
            title="The whole model",
            text="Topic selectivity, self key left out, by raw attention, by rollout and by TensorLens; of runs that "
            "measured it (analysis=all).",
            charts=tuple(
                Chart(kind="bar", title=f"topic selectivity (share) by {f}", keys=_INSTRUMENTS, by=f"factors.{f}")
                for f in FACTORS
            ),
        ),
        _TRAINING,
        Section(
            title="Heads",
            text="Head maps, patterns and rows.",
            charts=(_TOPIC_IMAGES, _PATTERNS, *_tables("attention", "probes")),
        ),
    ),
)

EMERGENCE = Dashboard(
    name="emergence",
    title="headdyn emergence over checkpoints",
    text="When do heads specialise? Every run is a checkpoint; the verdict on a series is in its sweep's report.html.",
    where="Config('checkpoint_step.value') >= 0",
    order="checkpoint_step",
    columns=("config:factors.value.model", "config:factors.value.seed", "config:checkpoint_step.value"),
    sections=(
        Section(title="Comparison prompts", text=_STEPS, charts=_over_steps(_PROMPTS)),
        Section(title="Weight clusters", text=_STEPS, charts=_over_steps(_SILHOUETTES)),
        Section(
            title="Topic heads",
            text=_STEPS,
            charts=(
                *_over_steps(("loss_nats", "selectivity", "specialisation", "probe_accuracy_middle")),
                Chart(kind="scatter", title="selectivity over loss", keys=("selectivity.value",), by="loss_nats.value"),
            ),
        ),
        Section(
            title="Heads",
            text="Checkpoint by checkpoint.",
            charts=(
                Chart(kind="images", title="Comparison prompts", keys=("specialization/null", "specialization/heads")),
                _TOPIC_IMAGES,
                *_tables("specialization", "attention"),
            ),
        ),
    ),
)


def of_sweep(dashboard: Dashboard, sweep: str | None) -> Dashboard:
    """The dashboard of one sweep's runs alone, where one is named: a sweep is a group of runs at W&B."""
    if sweep is None:
        return dashboard
    where = f"{dashboard.where} and Metric('Group') == {sweep!r}"
    return dataclasses.replace(dashboard, title=f"{dashboard.title}: {sweep}", where=where)


def in_depth(run: str | None) -> Dashboard:
    """Everything of one run, of the newest where none is named; of analyses it did not do, panels stay empty."""
    images = {
        "Attention": ("patterns/telling_heads", "attention/topics", "attention/roles"),
        "Whole model": tuple(f"tensorlens/{n}" for n in ("maps", "heads", "instruments", "layers")),
        "Loss and probes": ("loss/by_position", "probes/accuracy"),
        "Circuits": tuple(f"circuits/{n}" for n in ("heads", "spectra", "similarity", "clusters", "readouts")),
        "Ablation": ("ablation/heads", "ablation/groups"),
        "Comparison prompts": (
            *(f"specialization/{n}" for n in ("null", "layers", "heads", "group_sizes", "fractions")),
            *("patching/heads", "permutation/orders", "answer_lens/heads", "answer_lens/tokens"),
        ),
        "Clusters": tuple(f"head_clusters/{n}" for n in ("silhouettes", "assignments", "points")),
    }
    rows = (
        *("loss", "attention", "probes", "circuits", "tensorlens", "ablation"),
        *("patching", "specialization", "permutation", "answer_lens", "head_clusters"),
    )
    patterns = (Chart(kind="artifact", title="patterns", keys=(f"{run}-patterns",)),) if run else ()
    return Dashboard(
        name="run",
        title=f"headdyn run {run}" if run else "headdyn run in depth",
        text=f"{run}." if run else "The newest run; name another with --run, or choose it in the run set.",
        where=f"Metric('Name') == {run!r}" if run else "",
        most_runs=1,
        sections=(
            _TRAINING,
            *(Section(title=t, text="", charts=(Chart(kind="images", title=t, keys=k),)) for t, k in images.items()),
            Section(title="HeadTables", text="A row a head, a layer or the model.", charts=_tables(*rows)),
            Section(title="Record", text="Config and summary.", charts=(*patterns, Chart(kind="compare"))),
        ),
    )
