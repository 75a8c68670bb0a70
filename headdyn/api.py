"""headdyn from Python: `compose`, `run`, `sweep` and `load`, for notebooks and scripts.

    import headdyn

    sweep = headdyn.sweep("mode=smoke", "ordering=shuffled,topic", "seed=0,1")
    sweep.effects.to_pandas()
    sweep.figures["held_out_loss"]
    sweep.runs[0].pattern(layer=1, head=2)

They take the arguments of the command line, check them in the same way, and write the same folders. Afterwards they
restore the process: `sys.argv`, environment, logging, hooks, random numbers, Hydra's state, torch's threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hydra.errors import HydraException

from headdyn.composition import explain, plain_arguments
from headdyn.config import RunConfig
from headdyn.core.json_files import read_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import PATTERNS, RunRecord
from headdyn.core.settings import ConfigError, targeted
from headdyn.core.store import cache_root
from headdyn.launch import launch
from headdyn.plan import Plan, make_plan, remove_empty_folders
from headdyn.process_state import process_as_before
from headdyn.sweep.effects import MEAN, effect_name
from headdyn.sweep.factors import level_label
from headdyn.sweep.record import SweepRecord, is_run

if TYPE_CHECKING:
    import altair as alt

    from headdyn.core.figures import Figure
    from headdyn.data.corpus import Corpus
    from headdyn.models.decoder import Decoder


def compose(*overrides: str, config_dir: str | Path | None = None) -> tuple[RunConfig, ...]:
    """The settings of every run that `headdyn run -m OVERRIDES` would do. They are checked, and nothing is run.

    `overrides` are written as on the command line ("experiment=matrix", "seed=0,1"); without a swept key there is one
    run. `config_dir` is a folder of YAML files of your own. Raises ConfigError for an invalid command: one line with
    the key, its value and the fix.
    """
    with process_as_before():
        plan = plan_of(["-m", *_arguments(overrides, config_dir)])
        remove_empty_folders(plan)
        return plan.jobs


def run(*overrides: str, config_dir: str | Path | None = None) -> Run:
    """Do one run, as `headdyn run OVERRIDES` does, and return its record. A complete run is read and not run again.

    Raises ConfigError before anything starts if the command is invalid or names several runs; RuntimeError if the run
    fails; KeyboardInterrupt if it is stopped, after which the same call continues it.
    """
    folder = _folder_of_done(_arguments(overrides, config_dir))
    record = RunRecord.read(folder)
    if record.status != "complete":
        error = record.manifest.get("error", "no error is recorded")
        raise RuntimeError(f"{folder.name} is {record.status}: {error} (see {folder}/log.txt)")
    return Run(folder)


def sweep(*overrides: str, config_dir: str | Path | None = None) -> Sweep:
    """Do all runs of a sweep, as `headdyn run -m OVERRIDES` does, and return its record. Complete runs are only read.

    When a run fails, the others go on, and `Sweep.failed` lists it. Raises ConfigError before anything starts if the
    command is invalid, and KeyboardInterrupt if the sweep is stopped, after which the same call continues it.
    """
    return Sweep(_folder_of_done(["-m", *_arguments(overrides, config_dir)]))


def load(path: str | Path) -> Run | Sweep:
    """Read the folder of a run or of a sweep. Raises ValueError if it is neither, or if its record is incomplete."""
    folder = Path(path).expanduser()
    return Run(folder) if is_run(folder) else Sweep(folder)


def chart(figure: Figure | Mapping[str, Any]) -> alt.TopLevelMixin:
    """A figure of `headdyn.core.figures`, or its stored specification, as an Altair chart, which notebooks draw."""
    import altair as alt

    return alt.Chart.from_dict(dict(figure if isinstance(figure, Mapping) else figure.spec()))


class Charts(Mapping[str, "alt.TopLevelMixin"]):
    """Figures by name, as Altair charts. Each is made at its first use, because Altair checks every row of its data."""

    def __init__(self, figures: Mapping[str, Figure | Path]) -> None:
        self._figures = figures

    def __getitem__(self, name: str) -> alt.TopLevelMixin:
        figure = self._figures[name]
        return chart(read_json(figure) if isinstance(figure, Path) else figure)

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"<headdyn.Charts: {', '.join(self)}>"


class Run:
    """The record of a run; its files are read at first use. Raises ValueError if `path` is no run, or damaged."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._record = RunRecord.read(self.path)
        if self._record.status in ("absent", "damaged"):
            raise ValueError(self._record.manifest.get("error", f"{path} is no run's folder: it has no manifest.json"))

    def __repr__(self) -> str:
        return f"<headdyn.Run {self.name}: {self.status}>"

    @property
    def name(self) -> str:
        """The folder's name: the choices that distinguish the run from others, its seed, and a hash of its settings."""
        return self._record.name

    @property
    def status(self) -> str:
        """`complete`, `failed`, `interrupted` or `running`."""
        return self._record.status

    @property
    def factors(self) -> Mapping[str, Any]:
        """The choices that distinguish the run from others: groups' options, overridden keys, the seed."""
        return self._record.factors

    @property
    def config(self) -> Mapping[str, Any]:
        """Every setting of the run, resolved."""
        return self._record.manifest["config"]

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Settings, versions, machine, stages, seconds, and what every metric means."""
        return self._record.manifest

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run's scalars by name; those of analyses with interval, null, p, q, and number of units."""
        return self._record.scalars

    @cached_property
    def heads(self) -> HeadTable:
        """One row per layer, head and metric: `run.heads.where(metric="selectivity")`, `run.heads.matrix(...)`."""
        return self._record.heads()

    @cached_property
    def metrics(self) -> pa.Table:
        """What was logged during training, one row per step and name: step, name, value."""
        schema = pa.schema({"step": pa.int64(), "name": pa.string(), "value": pa.float64()})
        curves = self._record.metrics().items()
        rows = [{"step": step, "name": name, "value": value} for name, points in curves for step, value in points]
        return pa.Table.from_pylist(rows, schema)

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Further tables of the analyses, by name: the rows are splits, pairs or clusters, depending on the table."""
        return {file.stem: pq.read_table(file) for file in sorted(self.path.glob("*.parquet")) if file.stem != "heads"}

    @property
    def figures(self) -> Mapping[str, alt.TopLevelMixin]:
        """The run's figures as Altair charts, by name."""
        return Charts(_figure_files(self.path))

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.path / "report.html"

    def pattern(self, layer: int, head: int, sequence: int = 0) -> np.ndarray:
        """A head's attention pattern on one validation sequence: float32 [T, T], queries × keys, each row sums to 1.

        A run saves the patterns of its first `patterns_kept` validation sequences. Raises ValueError for others.
        """
        with _opened(self.path / PATTERNS) as file:
            _require_index("layer", layer, sum(name.startswith("pattern.") for name in file.keys()))  # noqa: SIM118
            pattern_NHQK = file.get_slice(f"pattern.{layer}")
            sequences, heads = pattern_NHQK.get_shape()[:2]
            _require_index("head", head, heads)
            _require_index("sequence", sequence, sequences)
            return pattern_NHQK[sequence : sequence + 1, head : head + 1][0, 0].astype(np.float32)

    def sequence(self, sequence: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and topics, [T] each, of a sequence whose patterns are saved. Raises ValueError for others."""
        with _opened(self.path / PATTERNS) as file:
            tokens_NT, topics_NT = file.get_tensor("tokens"), file.get_tensor("topics")
        _require_index("sequence", sequence, len(tokens_NT))
        return tokens_NT[sequence], topics_NT[sequence]

    def pattern_chart(self, layer: int, head: int, sequence: int = 0) -> alt.TopLevelMixin:
        """`pattern` as a chart; white lines are where a new topic begins."""
        from headdyn.core.pictures import pattern_grid

        pattern_QK, (_, topics_T) = self.pattern(layer, head, sequence), self.sequence(sequence)
        edges = (np.flatnonzero(np.diff(topics_T)) + 1).tolist()
        name, row = f"layer {layer}, head {head}", f"sequence {sequence}"
        return chart(pattern_grid(pattern_QK[None, None], rows=[row], columns=[name], boundaries=[edges]))

    def decoder(self, revision: str | None = None) -> Decoder:
        """The model that the run analysed, in float32 on the CPU; `revision` names another one of the same training,
        such as "step80".

        Raises ValueError if the cache (HEADDYN_CACHE) no longer holds it.
        """
        from headdyn.models.checkpoints import load as load_checkpoint

        model_stages = [kind for kind in self.manifest["stages"] if kind != "corpus"]
        checkpoint = self.manifest.get("checkpoint", {})
        revision = revision or checkpoint.get("revision") or "main"
        if not model_stages:
            return load_checkpoint(checkpoint["name"], revision).decoder
        folder = self._stage(model_stages[0] if revision != "main" else model_stages[-1])
        return load_checkpoint(folder / "snapshots" if (folder / "snapshots").is_dir() else folder, revision).decoder

    def corpus(self) -> Corpus:
        """The corpus on which the run trained or was analysed. Raises ValueError as `decoder` does."""
        if "corpus" not in self.manifest["stages"]:
            raise ValueError(f"{self.name} read no corpus; its model came trained")
        return targeted(self.config["data"], "data").open(self._stage("corpus"))

    def _stage(self, kind: str) -> Path:
        path = cache_root() / kind / self.manifest["stages"][kind]["key"]
        if not path.is_dir():
            raise ValueError(
                f"the {kind} of {self.name} is not in {cache_root()}; set HEADDYN_CACHE to the cache it was made with, "
                "or run it again with force=true"
            )
        return path


class Sweep:
    """The record of a sweep; its files are read at first use. Raises ValueError if `path` is no finished sweep."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._record = SweepRecord.read(self.path)

    def __repr__(self) -> str:
        return f"<headdyn.Sweep {self.name}: {len(self.runs)} of {len(self._record.jobs)} runs complete>"

    @property
    def name(self) -> str:
        """The folder's name: preset or swept keys, mode, and a hash of the set of runs."""
        return self._record.name

    @cached_property
    def runs(self) -> list[Run]:
        """The complete runs, in the order of the command."""
        return [Run(job.run.folder) for job in self._record.complete]

    @property
    def failed(self) -> dict[str, str]:
        """The error of every run that failed or was stopped, by the run's name."""
        return {job.run.name: job.run.manifest.get("error", job.run.status) for job in self._record.failed}

    @cached_property
    def summary(self) -> pa.Table:
        """One row per run: its factors, and every metric of the whole model with interval and null."""
        return pyarrow.csv.read_csv(self.path / "summary.csv")

    @cached_property
    def heads(self) -> HeadTable:
        """The head tables of all runs; the column `run` says which run a row is of."""
        return HeadTable.concat(run.heads for run in self.runs)

    @cached_property
    def metrics(self) -> pa.Table:
        """What was logged during the trainings: run, step, name, value."""
        parts = [
            run.metrics.add_column(0, "run", pa.array([run.name] * len(run.metrics), pa.string())) for run in self.runs
        ]
        return pa.concat_tables(parts)

    @cached_property
    def effects(self) -> pa.Table:
        """The effect of every factor on every outcome, in the outcome's unit (docs/science.md, "Effects over seeds").

        `kind` is contrast, slope, interaction, simple (one factor at one level of another) or mean (of one level). `n`
        is the number of seeds. With one seed there is a value and no interval. `detectable`, given where q is 0.05 or
        more, is the smallest effect whose q would be below 0.05 in four of five repetitions.
        """
        record = self._record
        rows = [*record.effects, *record.simple_effects, *record.level_means]
        numbers = ("value", "ci_low", "ci_high", "p", "q", "detectable")
        types = {"primary": pa.bool_(), "n": pa.int64()} | dict.fromkeys(numbers, pa.float64())
        names = ("kind", "outcome", "primary", "group", *numbers[:-1], "n", "detectable", "reason")
        columns: dict[str, list[Any]] = {"effect": [_effect(row) for row in rows]}
        columns |= {name: [row.get(name) for row in rows] for name in names}
        columns["levels"] = [json.dumps(row["levels"]) for row in rows]
        return pa.table({name: pa.array(c, types.get(name, pa.string())) for name, c in columns.items()})

    @property
    def answers(self) -> dict[str, list[str]]:
        """The answers at the top of the sweep's page: sentences by question, or by group and question."""
        from headdyn.sweep.words import statements

        all_statements = statements(self._record)
        return {f"{s.group}: {s.question}" if s.group else s.question: list(s.sentences) for s in all_statements}

    @cached_property
    def figures(self) -> Mapping[str, alt.TopLevelMixin]:
        """The figures of the sweep's page as Altair charts, by name."""
        from headdyn.report.files import sweep_figures

        return Charts(_figure_files(self.path) | sweep_figures(self._record))

    @property
    def report(self) -> Path:
        """The sweep's page."""
        return self.path / "report.html"


def do(arguments: Sequence[str]) -> tuple[Plan, int]:
    """Plan and do what the arguments of `headdyn run` say. Returns the plan and the exit status (0, 1 or 130).

    `run`, `sweep` and the command line all call it. Raises ConfigError before anything starts if the command is
    invalid, and RuntimeError if none of its jobs can be done.
    """
    with process_as_before():
        plan = plan_of(arguments)
        return plan, launch(plan, plain_arguments(arguments))


def plan_of(arguments: Sequence[str]) -> Plan:
    """The plan of a command: its jobs, composed and checked. Raises ConfigError and nothing else."""
    try:
        return make_plan(plain_arguments(arguments))
    except HydraException as error:
        raise ConfigError(explain(error, arguments)) from error


def _folder_of_done(arguments: Sequence[str]) -> Path:
    """Do the command and return its folder. Raises as `do` does, and KeyboardInterrupt if it was stopped."""
    plan, status = do(arguments)
    if status == 130:
        raise KeyboardInterrupt
    return plan.folder


def _arguments(overrides: Sequence[str], config_dir: str | Path | None) -> list[str]:
    """Arguments of the command line. Raises ConfigError for what is no override, such as the options -m and --help."""
    for override in overrides:
        if not isinstance(override, str) or override.startswith("-"):
            raise ConfigError(
                f"{override!r} is no override; give each as a string such as 'mode=smoke'. For several runs call "
                "headdyn.sweep, to check without running headdyn.compose"
            )
    return [*([] if config_dir is None else ["--config-dir", str(config_dir)]), *overrides]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A run's saved patterns. Raises ValueError if it saved none."""
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"{path.parent.name} saved no attention patterns; runs on a corpus do, with patterns_kept=4")
    with safe_open(path, framework="np") as file:
        yield file


def _require_index(name: str, index: int, count: int) -> None:
    """Raise ValueError if the index is not in 0 to count − 1."""
    if index not in range(count):
        raise ValueError(f"{name}={index} is out of range; this run has 0 to {count - 1}")


def _effect(row: Mapping[str, Any]) -> str:
    if row["kind"] != MEAN:
        return effect_name(row)
    ((factor, (level,)),) = row["levels"].items()
    return f"mean of {level_label(factor, level)}"


def _figure_files(folder: Path) -> dict[str, Figure | Path]:
    return {file.stem: file for file in sorted((folder / "figures").glob("*.json"))}
