"""Dashboards name only what runs log, and are saved whole or not at all; W&B's server is a stand-in on this machine."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr

from headdyn import dashboard
from headdyn.core.figures import Curve, curves
from headdyn.core.run_folder import write_manifest
from headdyn.core.tracking import run_id_of
from headdyn.dashboard import main, report, workspace
from headdyn.dashboard.panels import Dashboard, of_run, of_sweep
from headdyn.models.families import export_pretrained
from headdyn.run import main as run_main
from headdyn.sweep.merge import merge
from headdyn.sweep.record import SweepRecord
from tests.commands import TINY, only
from tests.core.test_tracking import records
from tests.report.folders import run as run_folder
from tests.report.folders import sweep as sweep_folder
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level

# Every analysis there is; small draws: what is tested here is which keys there are.
_FEW = ("analysis.head_clusters.null_draws=200", "analysis.ablation.texts=4", "analysis.ablation.random_groups=20")
MATRIX_RUN = (
    *TINY,
    *("tracking=wandb", "analysis=all", *_FEW),
    *("analysis.tensorlens.sequences=21", "analysis.tensorlens.targets=2"),
)
PROMPT_RUN = (
    *("model=huggingface", "model.revision=step1000", "data=comparisons", "data.bug_pairs=6", "data.control_pairs=4"),
    *("analysis=all_prompts", *_FEW),
    *("analysis.permutation.texts=2", "analysis.permutation.tokens=4"),
    *("tracking=wandb", "threads=1"),
)
RUN_ATTRIBUTES = {"createdAt", "displayName", "group"}  # what the app knows of every run


# -- what runs log ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Logged:
    """What one run logged: (section, key) as the app addresses it, the config's values, the run's name and group."""

    keys: frozenset[tuple[str, str]]
    config: Mapping[str, Any]
    name: str
    group: str


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def read(folder: Path) -> Logged:
    """The offline run's own file, read by the client's own reader."""
    found = records(folder)
    run = next(record["run"] for record in found if record["type"] == "run")
    history: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in found:
        if record["type"] == "history":
            history |= record["history"]["item"]
        if record["type"] == "summary":
            summary |= flat(record["summary"].get("update", {}))
    config = flat({key: {"value": value} for key, value in run["config"]["update"].items()})
    config = {key: value for key, value in config.items() if value is not None}
    kinds = {"table-file": "table"}
    media = {(kinds[v], k.removesuffix("._type")) for k, v in {**history, **summary}.items() if k.endswith("._type")}
    artifacts = {("artifact", record["artifact"]["name"]) for record in found if record["type"] == "artifact"}
    keys = {("history", k) for k, v in history.items() if isinstance(v, int | float)}
    keys |= {("summary", k) for k, v in summary.items() if v is not None} | {("config", k) for k in config}
    keys |= media | artifacts | {("run", name) for name in RUN_ATTRIBUTES}
    return Logged(frozenset(keys), config, run["display_name"], run["run_group"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def logged(place: Path) -> dict[str, Logged]:
    """A run of the matrix and a checkpoint on comparison prompts."""
    config = dataclasses.replace(NEOX, vocab_size=len(byte_level()), num_heads=8, num_kv_heads=8, d_model=64)
    folder = place / "suite" / "step1000"
    folder.mkdir(parents=True)
    export_pretrained(drawn(config), folder)
    byte_level().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            patch.delenv(name, raising=False)
        for name, value in {"HEADDYN_OUT": place, "HEADDYN_CACHE": place / "cache", "HOME": place}.items():
            patch.setenv(name, str(value))
        for name, value in {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["headdyn"])
        assert run_main(MATRIX_RUN) == 0
        assert run_main([*PROMPT_RUN, f"model.name={place / 'suite'}"]) == 0
    outputs = place / "outputs"
    return {"matrix": read(only(outputs, "mha_*")), "prompts": read(only(outputs, "huggingface_*"))}


@pytest.fixture(scope="module")
def sweeps(place: Path, logged: dict[str, Logged]) -> dict[str, SweepRecord]:
    """The run of the matrix beside a copy that says it has grouped queries, and the checkpoint by itself."""
    first, prompts = only(place / "outputs", "mha_*"), only(place / "outputs", "huggingface_*")
    second = place / "copies" / "outputs" / "gqa"
    shutil.copytree(first, second, ignore=shutil.ignore_patterns("wandb"))
    manifest = json.loads((second / "manifest.json").read_text())
    manifest["factors"]["attention"] = manifest["config"]["attention"]["name"] = "gqa"
    write_manifest(second, manifest)
    merge([first, second], place / "multirun" / "matrix")
    merge([prompts], place / "multirun" / "prompts")
    return {name: SweepRecord.read(place / "multirun" / name) for name in ("matrix", "prompts")}


@pytest.fixture(scope="module")
def views(sweeps: dict[str, SweepRecord]) -> dict[str, Dashboard]:
    return {
        "factors": of_sweep(sweeps["matrix"], "someone"),
        "checkpoints": of_sweep(sweeps["prompts"], "someone"),
        "run": of_run(sweeps["matrix"].jobs[0], "someone"),
        "checkpoint": of_run(sweeps["prompts"].jobs[0], "someone"),
    }


# -- what specs name --------------------------------------------------------------------------------------------------


def app_key(name: str) -> str:
    first, *rest = name.split(".")
    return name if "value" in rest else ".".join((first, "value", *rest))


def named(node: Any) -> set[tuple[str, str]]:
    """Every key that a spec's panels and sets of runs name, as (section, key)."""
    if isinstance(node, list):
        return set().union(*map(named, node))
    if not isinstance(node, dict):
        return set()
    found = set().union(*map(named, node.values()))
    if "viewType" in node:
        found |= panel_keys(node["viewType"], node["config"])
    if "runFeed" in node:
        columns = [tuple(column.split(":", 1)) for column in node["runFeed"]["columnOrder"]]
        listed = [(key["section"], key["name"]) for key in node["grouping"]]
        listed += [(item["key"]["section"], item["key"]["name"]) for item in node["filters"]["filters"]]
        ordered = [(key["key"]["section"], key["key"]["name"]) for key in node["sort"]["keys"]]
        # The app itself puts `value` into a sort key.
        found |= {*columns, *listed, *((s, app_key(name) if s == "config" else name) for s, name in ordered)}
    return found


def panel_keys(kind: str, config: dict[str, Any]) -> set[tuple[str, str]]:
    match kind:
        case "Run History Line Plot":
            return {("history", key) for key in (config["xAxis"], *config["metrics"])}
        case "Bar Chart":
            return {("config", config["groupBy"]), *(("summary", key) for key in config["metrics"])}
        case "Scatter Plot":
            return {tuple(config[axis].split(":", 1)) for axis in ("xAxis", "yAxis")}
        case "Parallel Coordinates Plot":
            return {tuple(column["accessor"].split(":", 1)) for column in config["columns"]}
        case "Vega2":
            (table,) = re.findall(r'"name": "tableKey", "value": "([^"]*)"', json.dumps(config))
            assert config["panelDefId"] == f"someone/headdyn_{table.removesuffix('_table').replace('/', '_')}"
            return {("table", table)}
        case "Weave":
            text = json.dumps(config)
            (constant,) = re.findall(r'"nodeType": "const", "type": "string", "val": "([^"]*)"', text)
            return {("artifact" if '"project-artifact"' in text else "table", constant)}
        case "Run Comparer":
            return set()
    raise AssertionError(f"a {kind} is not known here")


def specs(one: Dashboard) -> list[dict[str, Any]]:
    views = (workspace(one, "someone", "headdyn"), report(one, "someone", "headdyn", online=False))
    return [view._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json") for view in views]


def missing(one: Dashboard, *runs: Logged) -> set[tuple[str, str]]:
    return named(specs(one)) - frozenset().union(*(run.keys for run in runs))


def test_a_sweep_names_what_its_runs_log(logged, views):
    assert not missing(views["factors"], logged["matrix"])
    keys = named(specs(views["factors"]))
    assert {("config", "factors.value.attention"), ("config", "seed.value")} < keys
    assert {("summary", "selectivity.value"), ("history", "val_loss_nats"), ("table", "heads/attention")} < keys
    assert ("table", "attention/topics_table") in keys  # a figure's table, for its custom chart


def test_checkpoints_name_what_they_log(logged, views):
    assert not missing(views["checkpoints"], logged["prompts"])
    assert ("summary", "ov_effective_rank.value") in named(specs(views["checkpoints"]))
    assert logged["prompts"].config["checkpoint_step.value"] == 1000


def test_one_run_in_depth_names_what_runs_log(logged, views):
    for kind, run in (("run", "matrix"), ("checkpoint", "prompts")):
        assert not missing(views[kind], logged[run])
        # And the other way: no figure and no table of heads that a run logs lacks a panel.
        media = {key for key in logged[run].keys if key[0] == "table"}
        assert media and media <= named(specs(views[kind]))
    assert ("table", "patterns/telling_heads_table") in named(specs(views["run"]))
    assert ("artifact", f"{logged['matrix'].name}-patterns") in named(specs(views["run"]))


def passes(one: Dashboard, run: Logged) -> bool:
    """Whether a run passes the dashboard's filter, as the app would judge it."""
    (runset,) = specs(one)[0]["section"]["runSets"]
    ops = {
        "=": lambda a, b: a == b,
        ">=": lambda a, b: a is not None and a >= b,
        "IN": lambda a, b: a in b,
    }
    own: dict[tuple[str, str], Any] = {("config", key): value for key, value in run.config.items()}
    own |= {("run", "displayName"): run.name, ("run", "group"): run.group}
    items = runset["filters"]["filters"]
    return all(ops[i["op"]](own.get((i["key"]["section"], i["key"]["name"])), i["value"]) for i in items)


def test_filters_let_their_own_runs_through(logged, views, sweeps):
    matrix, prompts = logged["matrix"], logged["prompts"]
    assert passes(views["factors"], matrix)
    assert passes(views["checkpoints"], prompts) and not passes(views["checkpoints"], matrix)
    assert passes(views["run"], matrix) and not passes(views["run"], prompts)
    other = dataclasses.replace(matrix, group="another")
    assert not passes(views["factors"], other)
    assert passes(of_sweep(sweeps["matrix"], "someone", every_run=True), other)


def test_any_swept_key_has_its_panels(tmp_path: Path) -> None:
    entries = []
    for layers in (1, 2):
        entry = run_folder(tmp_path / str(layers), settings={"model": {"num_layers": layers}})
        factors = {**entry["factors"], "model.num_layers": layers}
        entries.append({"name": f"layers{layers}", "folder": f"{layers}/{entry['name']}", "factors": factors})
    one = of_sweep(SweepRecord.read(sweep_folder(tmp_path, entries)), "someone")
    assert one.groups == ["model.num_layers"]
    assert "Effects of model.num_layers" in [section.title for section in one.sections]
    keys = named(specs(one))
    assert {("config", "model.value.num_layers"), ("summary", "selectivity.value")} < keys


def with_panel(one: Dashboard, panel: Any) -> Dashboard:
    (first, *_) = one.sections
    return dataclasses.replace(one, sections=(dataclasses.replace(first, panels=[panel]),))


def bar(metric: str, by: str) -> Any:
    return wr.BarPlot(metrics=[metric], groupby=wr.Config(by), groupby_aggfunc="mean")


def chart(table: str) -> Any:
    name = f"someone/headdyn_{table.replace('/', '_')}"
    return wr.CustomChart(query={"summaryTable": {"tableKey": f"{table}_table"}}, chart_name=name)


@pytest.mark.parametrize(
    ("mutant", "unlogged"),
    [
        (lambda one: with_panel(one, wr.LinePlot(x="step", y=["val_loss"])), ("history", "val_loss")),
        (lambda one: with_panel(one, bar("selectivity.mean", "factors.attention")), ("summary", "selectivity.mean")),
        (lambda one: with_panel(one, bar("selectivity.value", "factors.order")), ("config", "factors.value.order")),
        (lambda one: with_panel(one, wr.ScatterPlot(x=wr.Config("seed"), y=wr.SummaryMetric("selectivity"))), ("summary", "selectivity")),
        (lambda one: with_panel(one, wr.ScatterPlot(x=wr.Config("step"), y=wr.SummaryMetric("loss_nats.value"))), ("config", "step.value")),
        (lambda one: with_panel(one, wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=wr.Config("attention"))])), ("config", "attention.value")),
        (lambda one: with_panel(one, chart("attention/topic")), ("table", "attention/topic_table")),
        (lambda one: with_panel(one, wr.WeavePanelSummaryTable(table_name="heads/attend")), ("table", "heads/attend")),
        (lambda one: with_panel(one, wr.WeavePanelArtifact(artifact="patterns", tab="files")), ("artifact", "patterns")),
        (lambda one: dataclasses.replace(one, groups=("factors.heads",)), ("config", "factors.value.heads")),
        (lambda one: dataclasses.replace(one, order="factors.time"), ("config", "factors.value.time")),
        (lambda one: dataclasses.replace(one, columns=("config:factors.seed",)), ("config", "factors.seed")),
        (lambda one: dataclasses.replace(one, where="Config('factors.model') == 'a'"), ("config", "factors.model")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_key_that_no_run_logs_is_found(logged, views, mutant, unlogged):
    assert missing(mutant(views["factors"]), logged["matrix"]) == {unlogged}


def test_panels_of_a_grid_do_not_overlap(views):
    grids = 0
    for one in views.values():
        for block in specs(one)[1]["blocks"]:
            panels = block.get("metadata", {}).get("panelBankSectionConfig", {}).get("panels", [])
            cells = [
                (x, y)
                for place in (panel["layout"] for panel in panels)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            ]
            assert len(cells) == len(set(cells)) and max((x for x, _ in cells), default=0) < 24
            grids += len(panels) > 1
    assert grids >= len(views)


def test_the_documented_command_finds_the_offline_runs(place, logged):
    (command,) = re.findall(r"^    (wandb sync .*)$", dashboard.__doc__, re.MULTILINE)
    wandb_here = shlex.quote(str(Path(sys.executable).with_name("wandb")))
    shown = subprocess.run(
        ["sh", "-c", command.replace("wandb sync", f"{wandb_here} sync --dry-run", 1)],
        cwd=place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout + shown.stderr
    assert all(run_id_of(run.name, "outputs") in text for run in logged.values())


# -- saving -----------------------------------------------------------------------------------------------------------


class Server:
    """As much of W&B's server as saving needs. `fails` names the upsert that is answered with an error."""

    def __init__(self) -> None:
        self.entity: dict[str, str] | None = {"id": "E"}
        self.project: dict[str, str] | None = {"id": "P", "internalId": "P"}
        self.fails = self.refuses = self.keeps = False
        self.has_presets = False
        self.presets: list[dict[str, Any]] = []
        self.upserts: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.created = False

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            if self.fails and len(self.upserts) == 3:
                return {"errors": [{"message": "out of\nspace"}], "data": None}
            self.upserts.append(variables)
            place = {"id": "P", "name": "headdyn", "entityName": "someone"}
            view = {**variables, "id": f"V{len(self.upserts)}", "project": place, "description": ""}
            return {"data": {"upsertView": {"inserted": True, "view": view}}}
        if "createCustomChart" in query or "CreateCustomChart" in query:
            self.presets.append(variables)
            if self.has_presets:
                return {"errors": [{"message": "a chart with this name already exists"}], "data": None}
            chart = {"id": "C", "name": variables.get("name")}
            return {"data": {"createCustomChart": {"chart": chart}}}
        if "deleteView" in query:
            self.deleted.append(variables["id"])
            return {"data": {"deleteView": {"success": not self.keeps}}}
        if "viewer" in query:
            teams: dict[str, Any] = {"edges": []}
            viewer = {"id": "U", "entity": "someone", "username": "someone", "flags": "{}", "teams": teams}
            return {"data": {"viewer": viewer}}
        self.created |= "upsertModel" in query  # a project
        if "models(" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            node = {"__typename": "Project", "id": "P", "name": "headdyn", "entityName": "someone", "createdAt": "2025-01-01", "isBenchmark": False, "user": None}  # fmt: skip
            return {"data": {"models": {"pageInfo": page, "edges": [{"node": node}]}}}
        return {"data": {"entity": self.entity, "project": self.project}}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in dashboard._PATIENCE.items():  # so that what main sets is undone
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer: Any = {}
            if state.refuses:
                answer = {"errors": [{"message": "user is not logged in"}]}
            elif self.path == "/graphql":  # the client also sends telemetry
                asked = json.loads(body)
                answer = state.answer(asked["query"], asked.get("variables") or {})
            body = json.dumps(answer).encode()
            self.send_response(401 if state.refuses else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it remembers the settings of runs in this process, and then the key
    yield state
    wandb.teardown()
    listening.shutdown()
    listening.server_close()


HERE = ("--entity", "someone", "--project", "headdyn")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that cannot be done says: one line, within seconds, exit status 2."""
    begun = time.monotonic()
    assert main([*HERE, *arguments]) == 2
    assert time.monotonic() - begun < 15
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("headdyn: ")
    return err


@pytest.fixture
def small(tmp_path: Path) -> SweepRecord:
    """A sweep of two orderings where the command looks for the newest one, one of its runs with a figure."""
    older, folder = tmp_path / "multirun" / "older", tmp_path / "multirun" / "newer"
    sweep_folder(older, [run_folder(older)])
    os.utime(older / "sweep.json", (0, 0))
    entries = [run_folder(folder, ordering=ordering) for ordering in ("shuffled", "topic")]
    drawn = curves([Curve(label="a", x=[0, 1], y=[0, 1])], xlabel="x", ylabel="y")
    drawn.save(folder / entries[0]["name"] / "figures" / "attention_roles.json")
    return SweepRecord.read(sweep_folder(folder, entries))


def of(sweep: SweepRecord) -> list[Dashboard]:
    return [of_sweep(sweep, "someone"), of_run(sweep.complete[-1], "someone")]


def test_four_views_are_saved_and_their_addresses_printed(server, small, capsys):
    assert main(HERE) == 0
    out, err = capsys.readouterr()
    addresses = out.splitlines()
    assert len(addresses) == 4 and all("/someone/headdyn" in address for address in addresses) and not err
    assert [(saved["type"], saved["displayName"]) for saved in server.upserts] == [
        (kind, one.title) for one in of(small) for kind in ("project-view", "runs")
    ]
    assert not server.deleted and not server.created
    saved = json.loads(server.upserts[1]["spec"])
    runsets = [run for block in saved["blocks"] for run in block.get("metadata", {}).get("runSets", [])]
    assert {run["project"]["id"] for run in runsets} == {"P"}
    offline = specs(of(small)[0])
    assert json.loads(server.upserts[0]["spec"]) == offline[0]
    assert named(saved) == named(offline[1])
    (preset,) = server.presets
    assert (preset["entity"], preset["chartName"]) == ("someone", "headdyn_attention_roles")
    assert '"name": "wandb"' in preset["spec"] and "datum['dataset']" in preset["spec"]


def test_a_preset_that_is_there_already_stays(server, small, capsys):
    server.has_presets = True
    assert main(HERE) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_run_by_itself_has_a_dashboard(server, small, capsys):
    assert main([str(small.complete[0].run.folder), *HERE]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert {saved["displayName"] for saved in server.upserts} == {f"headdyn run {small.complete[0].run.name}"}


def test_a_named_run_is_shown_and_an_unknown_one_refused(server, small, capsys):
    assert "--run other is no complete run of" in refused(capsys, "--run", "other")
    assert main([*HERE, "--run", small.complete[0].run.name]) == 0
    assert server.upserts[-1]["displayName"] == f"headdyn run {small.complete[0].run.name}"


def test_without_a_sweep_it_says_what_to_give(capsys):
    assert "holds no finished sweep; give the folder" in refused(capsys)


def test_an_unknown_entity_or_project_saves_nothing(server, small, capsys):
    server.entity = server.project = None
    assert "--entity someone is unknown" in refused(capsys)
    server.entity = {"id": "E"}
    assert "--project headdyn is unknown to W&B in someone" in refused(capsys)
    assert not server.upserts


def test_what_was_saved_before_a_failure_is_deleted(server, small, capsys):
    server.fails = True
    line = refused(capsys)
    assert "out of space; nothing was saved" in line
    assert len(server.upserts) == 3 and server.deleted == ["V1", "V2", "V3"]
    server.upserts, server.deleted, server.keeps = [], [], True
    assert f"still there, to be deleted by hand: {of(small)[0].title}" in refused(capsys)


def test_a_refused_key_is_said(server, small, capsys):
    server.refuses = True
    assert "wandb login --relogin" in refused(capsys)


def test_a_missing_entity_is_asked_for(server, small, capsys):
    assert main(["--project", "headdyn"]) == 2
    assert "--entity is missing" in capsys.readouterr().err


def test_without_a_key_the_specs_are_written_and_it_is_said(server, small, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    line = refused(capsys)
    assert "wandb login" in line and "4 specs are in" in line
    assert len(list((tmp_path / "dashboards").glob("*.json"))) == 4


def test_without_a_network_the_specs_are_written_and_it_is_said(small, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert "cannot be reached" in refused(capsys)
    assert len(list((tmp_path / "dashboards").glob("*.json"))) == 4


def test_offline_specs_are_written_alike_each_time(small, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    first = {path.name: path.read_text() for path in (tmp_path / "dashboards").iterdir()}
    assert main(["--out", str(tmp_path / "there")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "there").iterdir()} == first
    assert set(first) == {f"{name}_{kind}.json" for name in ("factors", "run") for kind in ("workspace", "report")}  # fmt: skip
    assert json.loads(first["run_report.json"])["spec"]["blocks"]


def test_a_folder_that_cannot_be_written_is_said(small, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in refused(capsys, "--out", str(tmp_path / "file"))


def test_without_the_extra_it_says_what_to_install(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert "pip install 'headdyn[dashboard]'" in refused(capsys, "--out", "anywhere")


def test_importing_it_imports_no_client_and_no_torch():
    code = (
        "import sys, headdyn.dashboard; print([m for m in ('torch', 'wandb', 'wandb_workspaces') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr
