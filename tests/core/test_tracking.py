"""The real W&B client, offline: what was logged is read back from the run's own file."""

import json
import logging
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb

from headdyn.core.figures import Curve, HeadMap, Interval, curves, head_map, interval_plot, rendered
from headdyn.core.records import HeadTable
from headdyn.core.settings import ConfigError, build
from headdyn.core.tracking import TrackingSettings, WandbTracker, custom_chart, open_tracker, run_id_of, unreachable
from tests.faults.wandb_server import wandb_server


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def open_in(tmp_path: Path, name: str = "run-a", commit: str | None = None, shared: bool = False, **settings):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    described = {
        "group": "a-sweep",
        "factors": {"attention": "mha", "seed": 0},
        "job_type": "train",
        "config": {"factors": {"seed": 3}},
        "commit": commit,
        "shared": shared,
    }
    return open_tracker(TrackingSettings(**settings), folder, name=name, staging=tmp_path / "staging", **described)


def records(folder: Path) -> list[dict]:
    """Every record of the offline run in `folder`, once its exit is on disk."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        runs = sorted((folder / "wandb").glob("offline-run-*"))
        assert len(runs) == 1
        wandb = Path(sys.executable).with_name("wandb")
        shown = subprocess.run(
            [wandb, "leet", "inspect", "--json", runs[0]], capture_output=True, text=True, check=True
        )
        found = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
        if any(record["type"] == "exit" for record in found):
            return found
        time.sleep(0.05)
    raise AssertionError("the run was never finished")


def synced(warning: str) -> list[Path]:
    """The folders that the command in this warning uploads."""
    (pattern,) = re.findall(r"`wandb sync (.+?)`", warning)
    return list(Path("/").glob(pattern.removeprefix("/")))


def history(found: list[dict]) -> list[dict]:
    return [record["history"] for record in found if record["type"] == "history"]


def test_an_offline_run_holds_metrics_table_figure_and_artifact(tmp_path):
    curves([Curve(label="a </script>", x=[0, 1], y=[0, 1])], xlabel="x", ylabel="y").save(tmp_path / "figure.json")
    (tmp_path / "patterns.safetensors").write_bytes(b"12345")
    said = {"tags": ("pilot", "seed=0", "x" * 80), "notes": "why it was run", "group": "my group"}
    with open_in(tmp_path, commit="0123456789ab", **said) as tracker:
        tracker.stands_on("corpus-1a2b", "dataset", {"num_topics": 3}, built=True)
        tracker.stands_on("EleutherAI/pythia", "model", {"revision": "step1000"}, built=False)
        tracker.log({"val_loss_nats": 2.5}, step=40)
        tracker.summarise(
            {"gap_closed": {"value": 0.9, "ci_low": 0.8, "n": 40}, "absent": {"reason": "x"}, "passes": 2}
        )
        tracker.summarise({"snapshot_losses_nats": {"0": 1.0}})
        tracker.table("heads/x", HeadTable.from_rows([{"metric": "sink_rate", "layer": 0, "head": 1, "value": 0.25}]))
        tracker.figure("loss", tmp_path / "figure.json")
        tracker.artifact("run-a-patterns", "attention", tmp_path / "patterns.safetensors")
    found = records(tmp_path / "run-a")
    text = json.dumps(history(found))
    assert "val_loss_nats" in text and "2.5" in text and "40" in text
    run = next(record["run"] for record in found if record["type"] == "run")
    assert (run["run_group"], run["job_type"], run["notes"]) == ("my group", "train", "why it was run")
    assert run["tags"] == ["attention=mha", "seed=0", "pilot", "x" * 64]
    assert run["config"]["update"]["factors"] == {"seed": 3} and run["git"]["commit"] == "0123456789ab"
    configs = [record["config"]["update"] for record in found if record["type"] == "config"]
    assert {"corpus-1a2b": "dataset"} in [config.get("outputs") for config in configs]
    assert {"EleutherAI/pythia": "model"} in [config.get("inputs") for config in configs]
    logged = {
        record["artifact"]["name"]: record["artifact"]["type"] for record in found if record["type"] == "artifact"
    }
    assert logged["corpus-1a2b"] == "dataset" and "EleutherAI-pythia" not in logged  # inputs are linked online alone
    assert any(record["type"] == "artifact" and record["artifact"]["type"] == "attention" for record in found)
    summary = {key for record in found if record["type"] == "summary" for key in record["summary"]["update"]}
    assert {"gap_closed", "passes", "heads/x", "loss_table"} <= summary and not summary & {
        "absent",
        "snapshot_losses_nats",
    }
    scalars = [record["summary"]["update"].get("gap_closed") for record in found if record["type"] == "summary"]
    assert {"value": 0.9, "ci_low": 0.8} in scalars
    assert "table" not in text  # a table in the history is plotted as its numbers of rows and columns
    tables = list((tmp_path / "run-a" / "wandb").rglob("*.table.json"))
    assert len(tables) == 2  # of heads and of the figure
    drawn = next(table for path in tables if "dataset" in (table := json.loads(path.read_text()))["columns"])
    assert "a </script>" in json.dumps(drawn["data"])


class OnlineRun:
    """What a tracker asks of an online run."""

    offline = False

    def __init__(self) -> None:
        self.config = wandb.Config()
        self.used, self.logged = [], []

    def define_metric(self, *names, **settings) -> None: ...

    def finish(self, exit_code: int = 0) -> None: ...

    def use_artifact(self, artifact) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact) -> None:
        self.logged.append(artifact)


def test_online_what_a_run_stands_on_is_linked_as_its_input_and_what_it_built_as_its_output():
    run = OnlineRun()
    tracker = WandbTracker(run)
    for name, built in (("corpus-1a", True), ("training-2b", False), ("some model-step1", False)):
        tracker.stands_on(name, "dataset" if built else "model", {"seed": 1}, built=built)
    assert [artifact.name for artifact in run.logged] == ["corpus-1a"]
    assert [artifact.name for artifact in run.used] == ["training-2b", "some-model-step1"]
    assert set(run.config["inputs"]) == {"training-2b", "some model-step1"} and set(run.config["outputs"]) == {
        "corpus-1a"
    }
    assert list(run.used[0].manifest.entries) == ["recipe.json"]


def test_a_server_that_takes_no_artifact_costs_the_artifacts_and_not_the_run(caplog):
    run, tried = OnlineRun(), []

    def fail(artifact) -> None:
        tried.append(artifact.name)
        raise wandb.errors.CommError("no answer")

    run.log_artifact = run.use_artifact = fail
    run.summary = {}
    tracker = WandbTracker(run)
    tracker.stands_on("corpus-1a", "dataset", {}, built=True)
    tracker.stands_on("training-2b", "model", {}, built=False)
    tracker.table("heads/x", HeadTable.whole("x", 1.0, n=3, unit="sequence"))
    assert tried == ["corpus-1a"] and set(run.config["inputs"]) == {"training-2b"}
    (line,) = (message for message in caplog.messages if message.startswith("W&B"))
    assert line.endswith("corpus-1a was not taken: no answer") and not run.summary


def test_a_run_that_is_repeated_is_one_run_and_those_of_a_sweep_lie_together(tmp_path):
    (tmp_path / "sweep").mkdir()
    for name in ("run-a", "run-b", "run-a"):
        described = {"group": "sweep", "factors": {}, "job_type": "train", "config": {}, "shared": True}
        folder = tmp_path / "sweep" / name
        with open_tracker(TrackingSettings(), folder, name=name, staging=tmp_path / "staging", **described) as tracker:
            tracker.log({"loss": 1.0}, step=1)
    names = [path.name for path in (tmp_path / "sweep" / "wandb").glob("offline-run-*")]
    assert len(names) == 2 and {name.split("-", 3)[3] for name in names} == {
        run_id_of("run-a", "sweep"),
        run_id_of("run-b", "sweep"),
    }
    assert run_id_of("run-a", "sweep") != run_id_of("run-a", "another") and run_id_of("run-a", "sweep")[:6] == "run-a-"


def test_a_figure_of_a_known_account_is_a_custom_chart(tmp_path):
    curves([Curve(label="a", x=[0, 1], y=[0, 1])], xlabel="x", ylabel="y").save(tmp_path / "figure.json")
    with open_in(tmp_path, entity="someone") as tracker:
        tracker.figure("loss/curve", tmp_path / "figure.json")
    text = json.dumps(records(tmp_path / "run-a"))
    assert "someone/headdyn_loss_curve" in text and "loss/curve_table" in text


def drawn(spec: dict) -> bytes:
    return re.sub(rb"gradient_\d+", b"gradient", rendered(spec, "svg"))  # which the renderer numbers on


@pytest.mark.parametrize(
    "chart",
    [
        curves([Curve(label=name, x=[0, 1, 2], y=[1, k, 0]) for k, name in enumerate("ab")], xlabel="x", ylabel="y"),
        head_map(
            [
                HeadMap(
                    title="m", unit="share", value_LH=np.arange(6.0).reshape(2, 3), marked_LH=np.eye(2, 3, dtype=bool)
                )
            ]
        ),
        interval_plot([Interval(label="row", value=1.0, low=0.5, high=2.0, null=0.0)], xlabel="x"),
    ],
    ids=["curves", "head_map", "interval_plot"],
)
def test_a_custom_chart_draws_what_the_figure_does(chart):
    spec = chart.spec()
    columns, rows, preset = custom_chart(spec)
    text = json.dumps(preset)
    assert "datasets" not in text and '"values"' not in text.replace(
        '"values": []', ""
    )  # a preset holds no run's numbers
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    filled = json.loads(json.dumps(preset).replace('{"name": "wandb"}', json.dumps({"values": table})))
    assert drawn(filled) == drawn(spec)
    # Mutant: without the filters every view would draw every table's rows.
    if len({row[0] for row in rows}) > 1:
        mixed = json.loads(json.dumps(filled).replace("datum['dataset'] ===", "0 <="))
        assert drawn(mixed) != drawn(spec)


def test_a_custom_chart_leaves_what_is_no_table_as_it_is():
    spec = {"mark": "point", "data": {"url": "a.csv"}, "layer": [{"mark": "rule"}, {"data": {"values": [{"x": 1}]}}]}
    columns, rows, preset = custom_chart(spec)
    own = {"data": {"name": "wandb"}, "transform": [{"filter": "datum['dataset'] === 0"}]}
    assert preset == {"mark": "point", "data": {"url": "a.csv"}, "layer": [{"mark": "rule"}, own]}
    assert (columns, rows) == (["dataset", "x"], [[0, 1]])


def test_each_job_of_a_process_has_a_run_of_its_own(tmp_path):
    for name, value in (("first", 1.0), ("second", 2.0)):
        with open_in(tmp_path, name) as tracker:
            tracker.log({"loss": value}, step=0)
    for name, value in (("first", 1.0), ("second", 2.0)):
        (only,) = history(records(tmp_path / name))
        assert only["item"]["loss"] == value


def test_a_failing_job_still_finishes_its_run(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), open_in(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, step=0)
        raise RuntimeError("boom")
    assert history(records(tmp_path / "run-a"))


def test_online_without_a_key_goes_offline_within_seconds_and_says_so(tmp_path, caplog, monkeypatch):
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:  # a server that can be reached
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with caplog.at_level(logging.WARNING), open_in(tmp_path, mode="online") as tracker:
            tracker.log({"loss": 1.0}, step=0)
    assert time.monotonic() - begun < 10
    assert "W&B goes offline" in caplog.text and "wandb login" in caplog.text
    assert history(records(tmp_path / "run-a"))
    assert synced(caplog.text) == list(tmp_path.glob("run-a/wandb/offline-run-*"))


def test_online_with_a_key_but_no_network_goes_offline(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    with caplog.at_level(logging.WARNING), open_in(tmp_path, mode="online") as tracker:
        tracker.log({"loss": 1.0}, step=0)
    assert "cannot be reached" in caplog.text
    assert history(records(tmp_path / "run-a"))
    assert synced(caplog.text) == list(tmp_path.glob("run-a/wandb/offline-run-*"))


def test_online_with_a_refused_key_goes_offline(tmp_path, caplog, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.AuthenticationError("invalid API key")

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr(wandb, "login", refuse)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with caplog.at_level(logging.WARNING), open_in(tmp_path, shared=True, mode="online") as tracker:
        tracker.log({"loss": 1.0}, step=0)
    assert "refused the login (invalid API key" in caplog.text
    assert history(records(tmp_path))
    assert synced(caplog.text) == list(tmp_path.glob("wandb/offline-run-*"))  # a sweep's, beside its runs


@pytest.mark.parametrize(
    ("url", "address"),
    [("https://w.example", ("w.example", 443)), ("http://w.example", ("w.example", 80)), ("http://w:99", ("w", 99))],
)
def test_a_server_is_tried_at_the_port_of_its_address(monkeypatch, url, address):
    tried = []

    def refuse(*where, timeout):
        tried.extend(where)
        raise OSError("refused")

    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setattr("headdyn.core.tracking.socket.create_connection", refuse)
    assert unreachable() == f"{address[0]} cannot be reached (refused)" and tried == [address]


@pytest.mark.parametrize(("mode", "resume"), [("online", "allow"), ("offline", None)])
def test_an_online_run_that_is_repeated_goes_on_as_the_same_run(tmp_path, monkeypatch, mode, resume):
    asked = []
    monkeypatch.setattr("headdyn.core.tracking.unreachable", lambda: None)
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or OnlineRun())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with open_in(tmp_path, mode=mode):
        pass
    (settings,) = asked
    assert (settings["mode"], settings["resume"]) == (mode, resume)
    assert settings["id"] == run_id_of("run-a", "a-sweep")


def test_a_server_that_dies_behind_the_login_costs_a_line_and_the_run_is_recorded_offline(
    tmp_path, caplog, monkeypatch
):
    hasty = {"init_timeout": 2, "finish_timeout": 2}
    monkeypatch.setattr(wandb, "Settings", lambda make=wandb.Settings, **values: make(**values | hasty))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with wandb_server("dead") as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        with caplog.at_level(logging.WARNING), open_in(tmp_path, mode="online") as tracker:
            tracker.log({"loss": 1.0}, step=0)
    assert caplog.text.count("W&B goes offline") == 1
    assert history(records(tmp_path / "run-a"))


def test_none_writes_nothing(tmp_path):
    with open_in(tmp_path, backend="none") as tracker:
        tracker.log({"loss": 1.0}, step=0)
        tracker.summarise({"a": 1})
    assert not list((tmp_path / "run-a").iterdir())


@pytest.mark.parametrize("settings", [{"backend": "mlflow"}, {"mode": "disabled"}])
def test_unknown_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"Input should be '\w+' or '\w+'"):
        TrackingSettings(**settings)
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ConfigError, match=rf"tracking\.{name}='{value}' must be one of "):
        build(TrackingSettings, settings, "tracking")
