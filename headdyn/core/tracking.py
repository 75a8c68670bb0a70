"""Sending a run's numbers to Weights & Biases through its own client, or nowhere. The run folder is the record."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlparse

from headdyn.core.settings import settings

if TYPE_CHECKING:
    import wandb

    from headdyn.core.records import HeadTable

log = logging.getLogger(__name__)

# How W&B shows a Vega-Lite specification, on its own site: the page that a report is needs no network, this one does.
_VEGA_PAGE = """<!doctype html><meta charset="utf-8"><div id="figure"></div>
<script src="https://cdn.jsdelivr.net/npm/vega@6"></script><script src="https://cdn.jsdelivr.net/npm/vega-lite@6"></script>
<script src="https://cdn.jsdelivr.net/npm/vega-embed@7"></script>
<script>vegaEmbed("#figure", SPEC, {actions: true});</script>"""


@settings
class TrackingSettings:
    """`backend=wandb` mirrors every run to W&B, by default into an offline folder beside the run's own records."""

    backend: Literal["wandb", "none"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "headdyn"
    entity: str | None = None


class Tracker(Protocol):
    """Where a run's numbers also go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def summarise(self, scalars: Mapping[str, Any]) -> None: ...

    def table(self, name: str, table: HeadTable) -> None: ...

    def figure(self, name: str, path: Path) -> None: ...

    def artifact(self, name: str, kind: str, path: Path) -> None: ...


class NoTracker:
    """Sends nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def summarise(self, scalars: Mapping[str, Any]) -> None: ...

    def table(self, name: str, table: HeadTable) -> None: ...

    def figure(self, name: str, path: Path) -> None: ...

    def artifact(self, name: str, kind: str, path: Path) -> None: ...


class WandbTracker:
    """One W&B run. Metrics carry their own step, so that replayed and live ones plot alike."""

    def __init__(self, run: wandb.Run) -> None:
        self.run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def summarise(self, scalars: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(scalars))

    def table(self, name: str, table: HeadTable) -> None:
        import wandb

        names = table.table.column_names
        rows = [[row[column] for column in names] for row in table.rows()]
        self.run.log({name: wandb.Table(columns=names, data=rows)})

    def figure(self, name: str, path: Path) -> None:
        import wandb

        self.run.log(
            {
                name: wandb.Html(
                    _VEGA_PAGE.replace("SPEC", path.read_text(encoding="utf-8").replace("</", r"<\/")), inject=False
                )
            }
        )

    def artifact(self, name: str, kind: str, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), policy="immutable")  # the run folder does not change, so nothing need be copied aside
        self.run.log_artifact(artifact)


@contextmanager
def open_tracker(
    settings: TrackingSettings,
    folder: Path,
    *,
    name: str,
    group: str,
    tags: Sequence[str],
    job_type: str,
    config: Mapping[str, Any],
    staging: Path,
) -> Iterator[Tracker]:
    """A tracker for one run, finished on leaving: a run that was not would swallow the next job's numbers.

    An online run without a key or a reachable server falls back to offline with a warning, within seconds.
    """
    if settings.backend == "none":
        yield NoTracker()
        return
    # W&B stages artifacts and caches under these; without them it writes into the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(staging))
    os.environ.setdefault("WANDB_CACHE_DIR", str(staging))
    import wandb

    mode = os.environ.get("WANDB_MODE", settings.mode)
    if mode == "online" and (problem := unreachable()):
        log.warning("W&B goes offline: %s. Later, `wandb sync %s` uploads what this run records.", problem, folder)
        mode = "offline"
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode=mode,  # type: ignore[arg-type]
        dir=str(folder),
        name=name,
        group=group,
        tags=list(tags),
        job_type=job_type,
        config=dict(config),
        reinit="finish_previous",
        # No job is made of a run: W&B Launch could not start one of a sweep, and looking for it takes a second.
        settings=wandb.Settings(silent=True, console="off", init_timeout=20, disable_job_creation=True),
    )
    # Not as a context manager: that prints the traceback of a failure, which is told in one line elsewhere.
    try:
        yield WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def unreachable() -> str | None:
    """Why an online run is not possible, or None. The server is tried first, for three seconds: asking for
    credentials where there is no network takes the client ten."""
    import wandb

    server = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url)
    try:
        port = server.port or (443 if server.scheme == "https" else 80)
        socket.create_connection((server.hostname or "", port), timeout=3).close()
    except OSError as error:
        return f"{server.hostname} cannot be reached ({error})"
    try:
        return None if wandb.login(prompt=False) else "no API key is configured (run `wandb login`)"
    except wandb.Error as error:  # a key that is refused, a server that does not answer as one
        return f"{server.hostname} refused the login ({error}; `wandb login --relogin` takes another key)"
