"""Sends a run's numbers to Weights & Biases through W&B's own client, or nowhere. The run's folder has them all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from headdyn.core.json_files import read_json
from headdyn.core.records import HeadTable
from headdyn.core.settings import settings

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

_SENT = ("value", "ci_low", "ci_high", "null")  # parts of a scalar that W&B gets; summary.json has them all
_FALLBACK = "W&B goes offline: %s. Later, `wandb sync %s` uploads what this run records."
_DATASET = "dataset"  # the column that says to which of a figure's tables a row belongs


@settings
class TrackingSettings:
    """`backend=wandb` sends every run to W&B, by default into an offline folder beside the run's own records.

    W&B shows runs of one `group` together (null: the sweep). `tags` are added to the tags of the run's factors.
    """

    backend: Literal["wandb", "none"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "headdyn"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None


class Tracker:
    """Receives a run's numbers, which its folder has too. This base class drops them."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def summarise(self, scalars: Mapping[str, Any]) -> None: ...

    def table(self, name: str, table: HeadTable) -> None: ...

    def figure(self, name: str, path: Path) -> None: ...

    def artifact(self, name: str, kind: str, path: Path) -> None: ...

    def stands_on(self, name: str, kind: str, recipe: Mapping[str, Any], *, built: bool) -> None: ...


class WandbTracker(Tracker):
    """One W&B run. Each metric is sent with its own step, so that metrics copied later are plotted like live ones.

    Tables go into the summary, because W&B would plot those of the history as numbers of rows and columns over steps.
    """

    def __init__(self, run: wandb.Run) -> None:
        self.run = run
        self._takes_files = True
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def summarise(self, scalars: Mapping[str, Any]) -> None:
        """Send numbers, and of scalars with an interval the value, interval and null."""
        for name, scalar in scalars.items():
            if not isinstance(scalar, Mapping):
                self.run.summary[name] = scalar
            elif "value" in scalar:
                self.run.summary[name] = {part: scalar[part] for part in _SENT if part in scalar}

    def table(self, name: str, table: HeadTable) -> None:
        import wandb

        names = table.table.column_names
        rows = [[row[column] for column in names] for row in table.rows()]
        self._send(name, partial(self.run.summary.__setitem__, name, wandb.Table(columns=names, data=rows)))

    def figure(self, name: str, path: Path) -> None:
        import wandb

        columns, rows, _ = custom_chart(read_json(path))
        table = wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
        if self.run.entity:
            chart = wandb.plot_table(f"{self.run.entity}/{preset_name(name)}", table, fields={})
            self._send(name, partial(self.run.log, {name: chart}))
        else:  # a preset needs an entity; the panels of dashboards find the table by its key
            self._send(name, partial(self.run.summary.__setitem__, f"{name}_table", table))

    def artifact(self, name: str, kind: str, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), policy="immutable")  # the run's folder does not change, so W&B need not copy it
        self._send(name, partial(self.run.log_artifact, artifact))

    def stands_on(self, name: str, kind: str, recipe: Mapping[str, Any], *, built: bool) -> None:
        """Record the corpus or model that the run uses, as an artifact with its recipe.

        It is an output if this run built it, else an input. W&B can link inputs online only; offline, the run's config
        still names them.
        """
        import wandb

        key = "outputs" if built else "inputs"
        self.run.config.update({key: {**dict(self.run.config.get(key, {})), name: kind}}, allow_val_change=True)
        artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", name), type=kind)
        with artifact.new_file("recipe.json") as file:
            json.dump(dict(recipe), file, sort_keys=True)
        if built:
            self._send(name, partial(self.run.log_artifact, artifact))
        elif not self.run.offline:
            self._send(name, partial(self.run.use_artifact, artifact))

    def _send(self, name: str, send: Callable[[], object]) -> None:
        """Send a table or an artifact to W&B. If the server does not take it, it and all later ones are left out."""
        import wandb

        if not self._takes_files:
            return
        try:
            send()
        except wandb.Error as error:
            self._takes_files = False
            log.warning("W&B gets no more tables and artifacts of this run, since %s was not taken: %s", name, error)


@contextmanager
def open_tracker(
    choice: TrackingSettings,
    folder: Path,
    *,
    name: str,
    group: str,
    factors: Mapping[str, Any],
    job_type: str,
    config: Mapping[str, Any],
    staging: Path,
    commit: str | None = None,
    shared: bool = False,
) -> Iterator[Tracker]:
    """A tracker for one run. Leaving the context finishes W&B's run, so that the next job's numbers do not go into it.

    W&B's id is made from the names of run and sweep, so that a run that is repeated or continued keeps its id. The
    offline record of an earlier try is removed, because the whole history is written again. Records lie in `wandb/` of
    the sweep's folder (`shared`) or of the run's own. The run is tagged with its factors, KEY=LEVEL, and the user's
    tags; `commit` is this code's, not that of the current folder. An online run without a key or a reachable server
    becomes offline with a warning, within seconds.
    """
    if choice.backend == "none":
        yield Tracker()
        return
    # W&B stages artifacts and caches under these; without them it writes into the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(staging))
    os.environ.setdefault("WANDB_CACHE_DIR", str(staging))
    import wandb

    place, run_id = folder.parent if shared else folder, run_id_of(name, group)
    offline = f"wandb/offline-run-*-{run_id}"
    mode: Any = os.environ.get("WANDB_MODE", choice.mode)
    if mode == "online" and (problem := unreachable()):
        log.warning(_FALLBACK, problem, place / offline)
        mode = "offline"
    for earlier in place.glob(offline):
        shutil.rmtree(earlier)
    start = partial(
        wandb.init,
        id=run_id,
        project=choice.project,
        entity=choice.entity,
        dir=str(place),
        name=name,
        group=choice.group or group,
        notes=choice.notes,
        # W&B refuses tags of more than 64 characters.
        tags=list(dict.fromkeys(tag[:64] for tag in (*(f"{k}={level}" for k, level in factors.items()), *choice.tags))),
        job_type=job_type,
        config=dict(config),
        reinit="finish_previous",
        # No W&B Launch job is made of a run: Launch could not start a sweep's run, and making it takes a second.
        # finish_timeout: a server that dies delays the end of the run by half a minute, not by hours.
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=20, finish_timeout=30, disable_job_creation=True, git_commit=commit
        ),
    )
    try:
        run = start(mode=mode, resume="allow" if mode == "online" else None)
    except wandb.Error as error:  # a server that accepts connections but does not answer
        if mode != "online":
            raise
        log.warning(_FALLBACK, error, place / offline)
        wandb.teardown()  # ends the client's own process, which still uses the run's id
        run = start(mode="offline")
    # Not `with run:`, which would print the traceback of a failure; the command reports failures in one line.
    try:
        yield WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def run_id_of(name: str, group: str) -> str:
    """The id of a run in W&B: its name, and a hash so that runs of the same name in two sweeps have two ids."""
    return f"{name[:100]}-{hashlib.sha256(f'{group}/{name}'.encode()).hexdigest()[:8]}"


def unreachable() -> str | None:
    """Why an online run is not possible, or None.

    The server is tried first, for at most three seconds; without a network the client's login would take ten.
    """
    import wandb

    server = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url)
    try:
        port = server.port or (443 if server.scheme == "https" else 80)
        socket.create_connection((server.hostname or "", port), timeout=3).close()
    except OSError as error:
        return f"{server.hostname} cannot be reached ({error})"
    try:
        return None if wandb.login(prompt=False) else "no API key is configured (run `wandb login`)"
    except wandb.Error as error:  # the key is refused, or the server is not one of W&B's
        return f"{server.hostname} refused the login ({error}; `wandb login --relogin` takes another key)"


def preset_name(figure: str) -> str:
    """The name of W&B's custom chart for a figure, SECTION/TITLE."""
    return f"headdyn_{figure.replace('/', '_')}"


def custom_chart(spec: Mapping[str, Any]) -> tuple[list[str], list[list[Any]], dict[str, Any]]:
    """A figure's specification in the form of W&B's custom charts: columns and rows of one table, and a preset.

    The preset reads the data called "wandb". The tables of a figure become one table, whose column `dataset` numbers
    them in the order in which the specification names them; each view of the preset filters the rows of its own.
    """
    tables: list[list[Mapping[str, Any]]] = []

    def preset(node: Any) -> Any:
        if isinstance(node, list):
            return [preset(child) for child in node]
        if not isinstance(node, Mapping):
            return node
        data = node.get("data")
        rows = None
        if isinstance(data, Mapping):
            rows = data.get("values") or spec.get("datasets", {}).get(data.get("name"))
        changed = {key: preset(child) for key, child in node.items() if key not in ("data", "datasets")}
        if not isinstance(rows, list):
            return changed | ({} if data is None else {"data": data})
        if rows not in tables:
            tables.append(rows)
        of_table = {"filter": f"datum['{_DATASET}'] === {tables.index(rows)}"}
        return changed | {"data": {"name": "wandb"}, "transform": [of_table, *changed.get("transform", [])]}

    chart = preset(spec)
    columns = list(dict.fromkeys(name for rows in tables for row in rows for name in row))
    cells = [
        [number, *(_cell(row.get(name)) for name in columns)] for number, rows in enumerate(tables) for row in rows
    ]
    return [_DATASET, *columns], cells, chart


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
