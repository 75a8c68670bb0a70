"""W&B dashboards as code: `headdyn dashboard [SWEEP] --entity ENTITY --project PROJECT` (extra `dashboard`).

From a sweep's records the command makes two dashboards, each as a workspace and as a report (panels.py): one of the
sweep's factors and outcomes, or of its checkpoints, and one of a single run in depth. Each call saves new ones, all or
none. Figures are registered as presets of custom charts. With `--out FOLDER`, with WANDB_MODE=offline, or if W&B
cannot be reached, the specifications are written as JSON instead. Runs recorded offline are uploaded later by one
command, on the machine that recorded them (their tables wait in HEADDYN_CACHE), which skips those uploaded before:

    wandb sync --entity ENTITY --project PROJECT */*/wandb/offline-run-*
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdyn.core.json_files import read_json, write_json
from headdyn.core.store import disk_error, require_writable
from headdyn.core.tracking import TrackingSettings, custom_chart, preset_name, unreachable
from headdyn.dashboard.panels import Dashboard, Section, figures, of_run, of_sweep
from headdyn.sweep.record import SWEEP, SweepRecord, is_run, single_job

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import PanelGrid, Report
    from wandb_workspaces.workspaces import Workspace

# The client would retry for minutes; this command gives up within seconds.
_PATIENCE = {"WANDB_SILENT": "true", "WANDB_HTTP_TIMEOUT": "6", "WANDB_X_GRAPHQL_RETRY_MAX": "2"}
_KNOWN = """query Known($entity: String!, $project: String!) {
    entity(name: $entity) { id }
    project(name: $project, entityName: $entity) { internalId }
}"""
_DELETE = "mutation Delete($id: ID!) { deleteView(input: {id: $id, deleteDrafts: true}) { success } }"


class DashboardError(ValueError):
    """Why nothing was saved, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the dashboards to W&B, or write them to files. Returns the exit status, 2 if that failed."""
    parser = argparse.ArgumentParser(prog="headdyn dashboard", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="SWEEP", help="a sweep's folder or a run's; or the newest"
    )
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team; default $WANDB_ENTITY")
    parser.add_argument("--project", default=TrackingSettings.project, help="default %(default)s")
    parser.add_argument("--every-run", action="store_true", help="show all runs of the project, not the sweep's alone")
    parser.add_argument("--run", help="the run to show in depth, by name; default the sweep's last")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the specs there as JSON, save nothing online")
    options = parser.parse_args(arguments)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    folder = options.out or Path(os.environ.get("HEADDYN_OUT", ".")) / "dashboards"
    online = options.out is None and os.environ.get("WANDB_MODE", "online") == "online"
    entity = options.entity or ""
    try:
        path = options.path or newest_sweep(Path(os.environ.get("HEADDYN_OUT", ".")) / "multirun")
        dashboards, presets = of_records(path, entity, options.run, every_run=options.every_run)
        problem = unreachable() if online else None
        if online and problem is None:
            print(*save(dashboards, presets, entity, options.project), sep="\n")
            return 0
        files = write(dashboards, entity, options.project, folder)
        if problem is not None:
            raise DashboardError(f"{problem}; nothing was saved, the {len(files)} specs are in {folder} instead")
    except (OSError, ValueError, ImportError) as error:
        line = str(disk_error(error, folder) or error)
        if isinstance(error, ImportError):
            line = f"dashboards need the package {error.name}, which is absent; pip install 'headdyn[dashboard]'"
        print(f"headdyn: {line}", file=sys.stderr)
        return 2
    print(f"offline: {len(files)} specs written to {folder}, nothing saved at W&B")
    return 0


def newest_sweep(multirun: Path) -> Path:
    """The folder of the sweep that ended last. Raises DashboardError if there is none."""
    records = sorted(multirun.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise DashboardError(f"{multirun} holds no finished sweep; give the folder of a sweep or of a run")
    return records[-1].parent


def of_records(
    path: Path, entity: str, run: str | None, *, every_run: bool = False
) -> tuple[list[Dashboard], Mapping[str, Path]]:
    """The dashboards of the folder of a sweep or a run, and the files of the figures to register as presets.

    Raises ValueError if the folder is neither, or if `run` is not one of the sweep's complete runs.
    """
    if is_run(path):
        job = single_job(path)
        return [of_run(job, entity)], figures([job])
    sweep = SweepRecord.read(path)
    by_name = {job.run.name: job for job in sweep.complete}
    if run is not None and run not in by_name:
        raise DashboardError(f"--run {run} is no complete run of {path}; it has {', '.join(by_name) or 'none'}")
    in_depth = [by_name[run]] if run else sweep.complete[-1:]
    dashboards = [of_sweep(sweep, entity, every_run=every_run), *(of_run(job, entity) for job in in_depth)]
    return dashboards, figures(sweep.complete)


def write(dashboards: Sequence[Dashboard], entity: str, project: str, folder: Path) -> list[Path]:
    """Write the specification of each workspace and report to a file. Equal arguments give equal files."""
    require_writable(folder, "folder of specs", "--out")
    written = []
    for dashboard in dashboards:
        views: dict[str, Any] = {"workspace": workspace(dashboard, entity, project)}
        views["report"] = report(dashboard, entity, project, online=False)
        for kind, view in views.items():
            spec = view._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json")
            about = {"entity": entity, "project": project, "kind": kind, "title": dashboard.title}
            written.append(folder / f"{dashboard.name}_{kind}.json")
            write_json(written[-1], {**about, "spec": spec})
    return written


def save(dashboards: Sequence[Dashboard], presets: Mapping[str, Path], entity: str, project: str) -> list[str]:
    """Save every dashboard to W&B and return their addresses. After a failure, those already saved are deleted again.

    Raises DashboardError for every failure, because the client's errors have no base class of their own.
    """
    views: list[Any] = []
    try:
        require_project(entity, project)
        register(presets, entity)
        for dashboard in dashboards:
            views += [workspace(dashboard, entity, project), report(dashboard, entity, project, online=True)]
        return [view.save().url for view in views]
    except BaseException as error:  # Ctrl-C too
        remaining = undo(views)
        if not isinstance(error, Exception):
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        rest = f"still there, to be deleted by hand: {', '.join(remaining)}" if remaining else "nothing was saved"
        raise DashboardError(f"{'' if isinstance(error, DashboardError) else 'W&B: '}{line}; {rest}") from error


def register(presets: Mapping[str, Path], entity: str) -> None:
    """Register every figure's specification as a preset of the entity; an existing preset is left as it is."""
    import wandb

    for key, path in presets.items():
        chart = {"entity": entity, "name": preset_name(key), "display_name": f"headdyn {key}"}
        try:
            wandb.Api().create_custom_chart(
                **chart, spec_type="vega2", access="private", spec=custom_chart(read_json(path))[-1]
            )
        except Exception as error:
            if "exist" not in str(error).lower():
                raise


def require_project(entity: str, project: str) -> None:
    """Raise DashboardError if W&B has no such entity or project, or does not show it to this API key."""
    if not entity:
        raise DashboardError("--entity is missing; give --entity USER_OR_TEAM, or --out FOLDER for the specs alone")
    known = _ask(_KNOWN, entity=entity, project=project)
    if known.get("entity") is None:
        raise DashboardError(f"--entity {entity} is unknown to W&B, or hidden from this key")
    if known.get("project") is None:
        raise DashboardError(
            f"--project {project} is unknown to W&B in {entity}; upload runs first: wandb sync --entity {entity} "
            f"--project {project} */*/wandb/offline-run-*"
        )


def undo(views: Sequence[Any]) -> list[str]:
    """Delete the views that have been saved. Returns the titles of those that could not be deleted, with reasons."""
    remaining = []
    for view in views:
        saved_id = getattr(view, "_internal_id", "") or getattr(view, "id", "")
        title = getattr(view, "title", None) or view.name
        try:
            if saved_id and not _ask(_DELETE, id=saved_id)["deleteView"]["success"]:
                remaining.append(f"{title} (W&B kept it)")
        except Exception as error:  # go on to the other views, whatever the error is
            remaining.append(f"{title} ({' '.join(str(error).split()) or type(error).__name__})")
    return remaining


def _ask(query: str, **variables: str) -> dict[str, Any]:
    import wandb
    from wandb_workspaces._graphql import execute_graphql

    return execute_graphql(wandb.Api(), query, variables)


# -- as the client's objects ------------------------------------------------------------------------------------------


def workspace(dashboard: Dashboard, entity: str, project: str) -> Workspace:
    """The dashboard as a workspace: sections of panels over one set of runs, filtered and grouped."""
    import wandb_workspaces.workspaces as ws

    key = ws.Config(dashboard.order) if dashboard.order else ws.Metric("CreatedTimestamp")
    sections = [ws.Section(name=section.title, panels=_placed(dashboard, section)) for section in dashboard.sections]
    sections[0].is_open = True
    return ws.Workspace(
        name=dashboard.title,
        entity=entity,
        project=project,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=dashboard.most_runs),
        runset_settings=ws.RunsetSettings(
            filters=dashboard.where,
            groupby=[ws.Config(group) for group in dashboard.groups],
            order=[ws.Ordering(key, ascending=bool(dashboard.order))],
            pinned_columns=list(dashboard.columns),
        ),
    )


def report(dashboard: Dashboard, entity: str, project: str, *, online: bool) -> Report:
    """The dashboard as a report, with a heading, a text and a grid of panels for each section.

    If `online`, every run set names entity and project, which the client then looks up at W&B; otherwise the run sets
    have those of the report.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(dashboard.text), wr.TableOfContents()]
    for section in dashboard.sections:
        blocks += [wr.H2(section.title), *([wr.P(section.text)] if section.text else [])]
        blocks.append(_grid(dashboard, section, {"entity": entity, "project": project} if online else {}))
    return wr.Report(entity=entity, project=project, title=dashboard.title, blocks=blocks, width="fluid")


def _grid(dashboard: Dashboard, section: Section, place: dict[str, str]) -> PanelGrid:
    """A section's panels and its run sets: one of all runs, or one for each of its `arms`.

    Run sets of arms are not grouped, because their panels group the runs by another factor.
    """
    import wandb_workspaces.reports.v2 as wr

    runsets = []
    for number, (name, arm) in enumerate((section.arms or {"runs": ""}).items()):
        runset = wr.Runset(name=name, filters=" and ".join(filter(None, (dashboard.where, arm))), **place)
        if not section.arms:
            runset.groupby = [f"config.{group}" for group in dashboard.groups]
        if dashboard.order:
            runset.order = [wr.OrderBy(wr.Config(dashboard.order), ascending=True)]
        runset._id = f"{dashboard.name}-{section.title}-runs-{number}".replace(" ", "-")
        runsets.append(runset)
    return wr.PanelGrid(runsets=runsets, panels=_placed(dashboard, section))


def _placed(dashboard: Dashboard, section: Section) -> list[Any]:
    """The section's panels, row by row on a grid of 24 columns; their ids are their places, the same in every call."""
    import wandb_workspaces.reports.v2 as wr

    narrow = (wr.LinePlot, wr.BarPlot, wr.ScatterPlot)
    x, y = 0, 0
    for number, panel in enumerate(section.panels):
        width, height = (8, 7) if isinstance(panel, narrow) else (24, 12)
        if x + width > 24:
            x, y = 0, y + 7
        panel.layout = wr.Layout(x=x, y=y, w=width, h=height)
        panel._id = f"{dashboard.name}-{section.title}-{number}".replace(" ", "-")
        if isinstance(panel, wr.LinePlot):
            panel.max_runs_to_show = dashboard.most_runs
        x, y = (0, y + height) if width == 24 else (x + width, y)
    return list(section.panels)
