"""Downloading against a hub of our own on the loopback, through the real client: what comes, what stays, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

import headdyn.models.checkpoints.files
from headdyn.core.store import StageFailedError, Store
from headdyn.models.checkpoints import hub
from headdyn.models.checkpoints.files import checkpoint_files, require_reachable, source_of
from headdyn.models.checkpoints.forecast import forecast
from headdyn.models.checkpoints.hub import CheckpointError, wanted_files
from headdyn.models.revisions import in_folder
from tests.models.checkpoints.hub_server import Hub, serve

NAME = "maker/pythia-tiny"
FILES = {
    "config.json": b'{"model_type": "gpt_neox"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096,  # 1 MiB
}
BESIDE = {
    "pytorch_model.bin": b"the same again",
    "modeling_evil.py": b"raise SystemExit",
    "README.md": b"",
    "optimizer.pt": b"moments",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve(Hub()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(hub, "_BACKOFF_SECONDS", (0.01, 0.01, 0.01))
        for step in (0, 1000, 2000, 143000):
            running.repos.setdefault(NAME, {})[f"step{step}"] = {
                **FILES,
                **BESIDE,
                "model.safetensors": FILES["model.safetensors"] + f"{step}".encode(),
            }
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def entries(store: Store) -> list[str]:
    """The folders that stay of downloaded checkpoints."""
    return sorted(path.name for path in (store.root / "checkpoint").iterdir() if path.is_dir())


# -- what is downloaded -----------------------------------------------------------------------------------------------


def test_only_what_is_read_is_downloaded_and_evicted_after_use(server: Hub, store: Store) -> None:
    with checkpoint_files(NAME, "step1000", store, keep=False) as folder:
        there = {path.name for path in folder.iterdir()}
        assert there == {*FILES, "source.json", "manifest.json"}
        assert (folder / "model.safetensors").read_bytes() == server.repos[NAME]["step1000"]["model.safetensors"]
        assert source_of(folder)["commit"] == server.commit(NAME, "step1000")
        assert len(entries(store)) == 1
    assert entries(store) == []
    assert not any(piece in line for line in server.asked for piece in BESIDE)


def test_what_is_kept_is_not_asked_for_again(server: Hub, store: Store) -> None:
    with checkpoint_files(NAME, "step0", store, keep=True) as first:
        pass
    assert first.is_dir()
    asked = len(server.asked)
    require_reachable(NAME, "step0", store)
    with checkpoint_files(NAME, "step0", Store(store.root), keep=False) as second:
        assert second == first and (second / "model.safetensors").stat().st_size == 1024**2 + 1
    assert first.is_dir(), "another job asked to keep it"
    assert len(server.asked) == asked


def test_a_kept_file_that_was_damaged_is_downloaded_again(server: Hub, store: Store) -> None:
    with checkpoint_files(NAME, "step0", store, keep=True) as folder:
        pass
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with checkpoint_files(NAME, "step0", Store(store.root), keep=True) as again:
        assert (again / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({"model.safetensors", "pytorch_model.bin"}, ["model.safetensors"]),
        ({"pytorch_model.bin", "tf_model.h5"}, ["pytorch_model.bin"]),
        (
            {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "model-00001-of-00001.safetensors"},
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
    ],
)
def test_one_set_of_weights(there: set[str], wanted: list[str]) -> None:
    text = {"tokenizer.json", "merges.txt", "vocab.json", "special_tokens_map.json", "chat_template.jinja"}
    assert wanted_files({"config.json", "x.py", "onnx/model.onnx", *there}) == ["config.json", *wanted]
    assert set(wanted_files({"config.json", *text, *there})) == {"config.json", *text, *wanted}


def test_the_hubs_own_cache_is_used_and_left_alone(server: Hub, store: Store, tmp_path: Path) -> None:
    commit = server.commit(NAME, "step2000")
    root = tmp_path / "hub-cache" / "models--maker--pythia-tiny"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "step2000").write_text(commit)
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / file).write_bytes(FILES[file])
    with checkpoint_files(NAME, "step2000", store, keep=False) as folder:
        assert folder == snapshot and source_of(folder) == {}
    assert (snapshot / "model.safetensors").exists() and server.asked == []
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text("{}")  # one shard of two: not complete
    with checkpoint_files(NAME, "step2000", store, keep=False) as folder:
        assert folder != snapshot


# -- failing connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "fault"), [("model.safetensors", 503), ("model.safetensors", "flip"), ("/api/", 503), ("/api/", 429)]
)
def test_failures_that_pass_are_retried(server: Hub, store: Store, where: str, fault: int | str) -> None:
    server.faults = {where: [fault, fault]}
    with checkpoint_files(NAME, "step1000", store, keep=False) as folder:
        assert (folder / "model.safetensors").read_bytes().endswith(b"1000")
    assert server.faults == {where: []}


def test_a_broken_connection_is_gone_on_from(server: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # the client resumes by whole chunks
    server.faults = {"model.safetensors": ["cut"]}
    with checkpoint_files(NAME, "step1000", store, keep=False) as folder:
        assert (folder / "model.safetensors").read_bytes() == server.repos[NAME]["step1000"]["model.safetensors"]
    assert any("model.safetensors bytes=" in line for line in server.asked)
    assert server.sent_bytes < 1.2 * 1024**2, "the first half came once"


def test_an_interrupted_download_keeps_its_whole_files(server: Hub, store: Store) -> None:
    server.faults = {"tokenizer.json": [503] * 99}
    with (
        pytest.raises(CheckpointError, match=r"step1000, tokenizer.json cannot be had from the hub"),
        checkpoint_files(NAME, "step1000", store, keep=False),
    ):
        raise AssertionError("never here")
    assert entries(store)[0].endswith(".partial") and server.gets("/config.json") == 1
    server.faults = {}
    with checkpoint_files(NAME, "step1000", store, keep=False):
        pass
    assert server.gets("/config.json") == 1
    assert entries(store) == []


def test_a_file_that_is_always_wrong_is_an_error(server: Hub, store: Store) -> None:
    server.faults = {"model.safetensors": ["flip"] * 9}
    with (
        pytest.raises(CheckpointError, match=r"step1000, model.safetensors .*does not match the hub's checksum"),
        checkpoint_files(NAME, "step1000", store, keep=False),
    ):
        raise AssertionError("never here")


# -- what is not there ------------------------------------------------------------------------------------------------


def refused(name: str, revision: str, store: Store) -> str:
    begun = time.monotonic()
    told = []
    for ask in (
        lambda: require_reachable(name, revision, store),
        lambda: checkpoint_files(name, revision, store, keep=False).__enter__(),
    ):
        with pytest.raises(CheckpointError) as caught:
            ask()
        told.append(str(caught.value))
    assert told[0] == told[1] and "\n" not in told[0]
    assert time.monotonic() - begun < 5
    return told[0]


def test_missing_gated_and_impossible_models(server: Hub, store: Store) -> None:
    server.repos["maker/secret"] = {"main": FILES}
    server.gated.add("maker/secret")
    assert refused("maker/secret", "main", store).startswith("maker/secret is gated; ask for access at http://127")
    told = refused("maker/nothing", "main", store)
    assert told.startswith("the hub has no model maker/nothing, or it is private") and "check model.name" in told
    assert "no folder here, nor can it be a name on the hub" in refused("what is this?", "main", store)
    assert "there is no such folder" in refused("./suites/none", "main", store)
    assert "there is no such folder" in refused("a/b/c", "main", store)
    told = refused(NAME, "step1500", store)
    assert told == f"{NAME} has no revision step1500; the nearest it has are step0, step1000, step2000"
    assert "the nearest it has are" in refused(NAME, "no-such-branch", store)


def test_repositories_that_are_no_checkpoints(server: Hub, store: Store) -> None:
    server.repos["maker/data"] = {"main": {"README.md": b""}}
    server.repos["maker/gguf"] = {"main": {"config.json": b"{}", "model.gguf": b""}}
    for name, told in (("maker/data", "has no config.json"), ("maker/gguf", "holds no weights that are read")):
        with pytest.raises(CheckpointError, match=told), checkpoint_files(name, "main", store, keep=False):
            raise AssertionError("never here")


def test_a_failure_waited_for_is_not_tried_again(server: Hub, store: Store) -> None:
    """Two jobs want one missing revision; whichever waits hears what the other heard."""
    server.faults = {"model.safetensors": [503] * 99}
    errors: list[Exception] = []

    def job(own: Store) -> None:
        try:
            with checkpoint_files(NAME, "step0", own, keep=True):
                raise AssertionError("never here")
        except (CheckpointError, StageFailedError) as error:
            errors.append(error)

    jobs = [threading.Thread(target=job, args=(Store(store.root),)) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert len(errors) == 2 and all("model.safetensors" in str(error) for error in errors)


# -- no network -------------------------------------------------------------------------------------------------------


def test_without_a_network(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_BACKOFF_SECONDS", (0.01, 0.01))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    told = refused(NAME, "step1000", store)
    assert told.startswith(f"{NAME} step1000 cannot be had from the hub (") and "model=organism_planted" in told


def test_a_hub_that_never_answers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(hub, "_GIVE_UP_SECONDS", 0.4)

    def silent(*_: object, **__: object) -> None:
        time.sleep(3)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", silent)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"TimeoutError: no answer.*model=organism_planted"):
        require_reachable(NAME, "step1000", store)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_process_without_a_network_says_so_in_one_line_within_ten_seconds(
    tmp_path: Path, offline: dict[str, str]
) -> None:
    """The real process with the real pauses, as it is without torch."""
    code = (
        "import sys, pathlib\n"
        "from headdyn.core.store import Store\n"
        "from headdyn.models.checkpoints.files import require_reachable\n"
        "from headdyn.models.checkpoints.hub import CheckpointError\n"
        "try:\n"
        f"    require_reachable('EleutherAI/pythia-160m', 'step1000', Store(pathlib.Path({str(tmp_path)!r})))\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), **offline}
    begun = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert time.monotonic() - begun < 10
    assert ran.stdout.count("\n") == 1 and "model=organism_planted" in ran.stdout
    assert "EleutherAI/pythia-160m step1000" in ran.stdout


# -- local folders ----------------------------------------------------------------------------------------------------


def test_a_local_folder_and_a_folder_of_revisions(tmp_path: Path, store: Store) -> None:
    for revision in ("step0", "step2000", "step16"):
        (tmp_path / "suite" / revision).mkdir(parents=True)
        (tmp_path / "suite" / revision / "config.json").write_text("{}")
    suite = str(tmp_path / "suite")
    with checkpoint_files(suite, "step16", store, keep=False) as folder:
        assert folder == tmp_path / "suite" / "step16"
    with checkpoint_files(f"{suite}/step16", "main", store, keep=False) as folder:
        assert folder == tmp_path / "suite" / "step16"
    assert folder.is_dir() and in_folder(tmp_path / "suite") == ("step0", "step16", "step2000")
    require_reachable(suite, "step2000", store)
    for name, revision, told in (
        (suite, "step1000", "has no revision step1000; the nearest there are step0, step16, step2000"),
        (suite, "main", "has no revision main; the nearest there are"),
        (f"{suite}/step0", "step16", "holds one checkpoint and no folder step16"),
        (str(tmp_path), "main", "holds no checkpoint: neither config.json nor folders that do"),
    ):
        assert told in refused(name, revision, store)


# -- the disk ---------------------------------------------------------------------------------------------------------


def most_on_disk(server: Hub, store: Store) -> int:
    """The largest number of revisions on the disk while nine jobs read one each."""
    server.repos[NAME] |= {f"step{step}": server.repos[NAME]["step0"] for step in range(3000, 8000, 1000)}
    seen = []

    def job(revision: str, own: Store) -> None:
        with checkpoint_files(NAME, revision, own, keep=False) as folder:
            seen.append(len(entries(store)))
            time.sleep(0.05)
            assert (folder / "model.safetensors").is_file()
            seen.append(len(entries(store)))

    jobs = [threading.Thread(target=job, args=(revision, Store(store.root))) for revision in server.repos[NAME]]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert len(seen) == 2 * len(jobs) == 18
    return max(seen)


def test_at_most_two_are_on_the_disk_whatever_the_number_of_jobs(
    server: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert most_on_disk(server, store) == 2
    assert entries(store) == []
    monkeypatch.setattr(headdyn.models.checkpoints.files, "MOST_ON_DISK", 9)  # the mutant
    assert most_on_disk(server, store) > 2


def test_what_killed_jobs_left_does_not_pile_up(server: Hub, store: Store) -> None:
    """Three jobs die while they read; each next one removes what the one before it left."""
    counts = []
    for step in (0, 1000, 2000):
        code = (
            "import os, pathlib\n"
            "from headdyn.core.store import Store\n"
            "from headdyn.models.checkpoints.files import checkpoint_files\n"
            f"with checkpoint_files({NAME!r}, 'step{step}', Store(pathlib.Path({str(store.root)!r})), keep=False):\n"
            "    os._exit(9)\n"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 9
        counts.append(len(entries(store)))
    assert counts == [1, 1, 1]
    asked = server.gets("step2000")
    with checkpoint_files(NAME, "step2000", store, keep=False):
        assert len(entries(store)) == 1
    assert server.gets("step2000") == asked, "what the last one left is used"
    with checkpoint_files(NAME, "step143000", store, keep=True):
        pass
    kept = json.loads(next((store.root / "checkpoint").glob("*/source.json")).read_text())
    assert kept["revision"] in ("step1000", "step143000")


# -- before anything is downloaded ------------------------------------------------------------------------------------


def test_what_a_series_will_download_and_which_revisions_hold_the_same_weights(server: Hub, store: Store) -> None:
    repo = server.repos[NAME]
    repo["step1000"]["model.safetensors"] = repo["step143000"]["model.safetensors"]
    with checkpoint_files(NAME, "step0", store, keep=True):
        pass
    sent = server.sent_bytes
    found = forecast(NAME, ("step143000", "step0", "step1000", "step2000", "step7"), store)
    assert server.sent_bytes - sent < 100_000  # no weights
    assert list(found.to_download) == ["step1000", "step2000", "step143000"]
    assert found.shared == {"step1000": "its weights are those of step143000, the end of training"}
    sizes = [sum(len(repo[revision][file]) for file in FILES) for revision in ("step1000", "step2000", "step143000")]
    assert sum(found.to_download.values()) == sum(sizes)
    size, shared = found.lines()
    assert size == f"{NAME}: 3 of 5 checkpoints to download, 0.0031 GB"
    assert shared == (
        f"{NAME}: 1 of the 5 will not count (step1000), because the hub's hashes say that its weights are those of "
        "step143000, the end of training; to take only the others, set model.revisions=step0,step7,step2000,step143000"
    )


def test_weights_are_compared_with_those_on_this_machine_and_the_end_is_that_of_the_series(
    server: Hub, store: Store
) -> None:
    repo = server.repos[NAME]
    for step in (1000, 2000):
        repo[f"step{step}"]["model.safetensors"] = repo["step143000"]["model.safetensors"]
    repo["main"] = repo["step143000"]
    with checkpoint_files(NAME, "step143000", store, keep=True):
        pass
    found = forecast(NAME, ("step0", "step1000", "step2000", "step143000", "main"), store)
    assert list(found.to_download) == ["step0", "step1000", "step2000", "main"]
    same = "its weights are those of step143000, the end of training"
    assert found.shared == {"step1000": same, "step2000": same, "main": same}


def test_weights_in_shards_are_the_same_where_all_shards_are(server: Hub, store: Store) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    settings = {name: content for name, content in FILES.items() if not name.endswith(".safetensors")}
    server.repos["maker/large"] = {
        f"step{step}": {**settings, "model.safetensors.index.json": index, shards[0]: b"one", shards[1]: second}
        for step, second in ((1, b"other"), (2, b"two"), (3, b"two"))
    }
    told = forecast("maker/large", ("step1", "step2", "step3"), store)
    assert told.shared == {"step2": "its weights are those of step3, the end of training"}


def test_a_folder_and_what_is_here_need_no_forecast(server: Hub, store: Store, tmp_path: Path) -> None:
    (tmp_path / "suite" / "step1").mkdir(parents=True)
    (tmp_path / "suite" / "step1" / "config.json").touch()
    asked = len(server.asked)
    assert forecast(str(tmp_path / "suite"), ("step1", "step2"), store).lines() == []
    assert len(server.asked) == asked
