import errno
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from headdyn.core.store import StageFailedError, StageInterruptedError, Store, disk_error, recipe_key

RECIPE = {"schema": 1, "seed": 0}
spawn = multiprocessing.get_context("fork")


def build(folder: Path) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "numbers.txt").write_text("1 2 3")


def test_a_stage_is_built_once_and_found_again(tmp_path):
    calls = []
    store = Store(tmp_path)
    first = store.get("corpus", RECIPE, lambda folder: (calls.append(1), build(folder)))
    second = Store(tmp_path).get("corpus", RECIPE, lambda folder: calls.append(2))
    assert calls == [1]
    assert first.built and not second.built
    assert (second.path / "sub" / "numbers.txt").read_text() == "1 2 3"


def test_a_root_that_is_not_there_yet_is_made(tmp_path):
    assert Store(tmp_path / "new" / "cache").get("corpus", RECIPE, build).built


def test_the_key_depends_on_everything_in_the_recipe_and_not_on_its_order():
    assert recipe_key("a", {"x": 1, "y": 2}) == recipe_key("a", {"y": 2, "x": 1})
    variants = [("a", {"x": 1}), ("b", {"x": 1}), ("a", {"x": 2}), ("a", {"x": 1, "schema": 2}), ("a", {"x": 1.5})]
    assert len({recipe_key(*variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: f.write_text("1 2 4"), "checksum"),
        (lambda f: f.write_text("1 2"), "bytes"),
        (lambda f: f.unlink(), "missing"),
        (lambda f: (f.parent.parent / "manifest.json").write_text("{"), "unreadable"),
    ],
)
def test_a_damaged_entry_is_set_aside_and_built_again(tmp_path, caplog, harm, said):
    entry = Store(tmp_path).get("corpus", RECIPE, build)
    harm(entry.path / "sub" / "numbers.txt")
    with caplog.at_level(logging.WARNING):
        again = Store(tmp_path).get("corpus", RECIPE, build)
    assert again.built
    assert (again.path / "sub" / "numbers.txt").read_text() == "1 2 3"
    assert said in caplog.text
    assert (tmp_path / "corpus" / f"{entry.key}.damaged-1").is_dir()


def test_no_changed_bit_of_a_manifest_gives_another_recipe(tmp_path):
    """Every bit of it: a manifest that is served has the recipe and the files that were written."""
    path = Store(tmp_path).get("corpus", RECIPE, build).path
    content, served = (path / "manifest.json").read_bytes(), 0
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (path / "manifest.json").write_bytes(changed)
        if Store(tmp_path).damage(path) is None:
            found, written = json.loads(changed), json.loads(content)
            assert all(found[key] == written[key] for key in ("kind", "recipe", "files"))
            served += 1
    assert served < 8 * len(content) / 10  # digits of the seconds alone


def test_find_does_not_serve_a_damaged_entry(tmp_path):
    entry = Store(tmp_path).get("corpus", RECIPE, build)
    assert Store(tmp_path).find("corpus", RECIPE).path == entry.path
    (entry.path / "sub" / "numbers.txt").write_text("9 9 9")
    assert Store(tmp_path).find("corpus", RECIPE) is None


def _slow_build(root, log):
    def work(folder):
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        build(folder)

    Store(root).get("corpus", RECIPE, work)


def test_parallel_jobs_build_once(tmp_path):
    jobs = [spawn.Process(target=_slow_build, args=(tmp_path / "c", tmp_path / "log")) for _ in range(4)]
    [job.start() for job in jobs]
    [job.join() for job in jobs]
    assert [job.exitcode for job in jobs] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def _hang(root, ready):
    def work(folder):
        (folder / "half").write_text("x")
        ready.set()
        time.sleep(60)

    Store(root).get("corpus", RECIPE, work)


def test_a_killed_builder_leaves_neither_lock_nor_half_an_entry(tmp_path):
    ready = spawn.Event()
    job = spawn.Process(target=_hang, args=(tmp_path, ready))
    job.start()
    assert ready.wait(20)
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    entry = Store(tmp_path).get("corpus", RECIPE, build)
    assert entry.built
    assert not (entry.path / "half").exists()


def _fail_slowly(root, ready, outcomes):
    def work(folder):
        ready.set()
        time.sleep(0.7)
        raise ValueError("the reason")

    try:
        Store(root).get("corpus", RECIPE, work)
    except Exception as error:
        outcomes.put((type(error).__name__, str(error)))


def test_waiters_do_not_repeat_a_failing_build_but_a_later_call_tries_anew(tmp_path):
    ready, outcomes = spawn.Event(), spawn.Queue()
    first = spawn.Process(target=_fail_slowly, args=(tmp_path, ready, outcomes))
    first.start()
    assert ready.wait(20)
    begun = time.monotonic()
    with pytest.raises(StageFailedError, match="the reason"):
        Store(tmp_path).get("corpus", RECIPE, build)
    assert time.monotonic() - begun > 0.3  # it did wait
    first.join()
    assert outcomes.get()[0] == "ValueError"
    assert Store(tmp_path).get("corpus", RECIPE, build).built
    assert not list((tmp_path / "corpus").glob("*.failed.json"))


def test_a_clock_set_back_after_a_failure_does_not_keep_later_calls_from_trying(tmp_path):
    def fail(folder):
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        Store(tmp_path).get("corpus", RECIPE, fail)
    (mark,) = (tmp_path / "corpus").glob("*.failed.json")
    tomorrow = time.time() + 86_400
    os.utime(mark, (tomorrow, tomorrow))
    assert Store(tmp_path).get("corpus", RECIPE, build).built


def test_an_interrupted_resumable_build_goes_on_where_it_was(tmp_path):
    def first(folder):
        (folder / "step").write_text("5")
        raise StageInterruptedError("asked to stop")

    def second(folder):
        assert (folder / "step").read_text() == "5"
        (folder / "step").write_text("10")

    store = Store(tmp_path)
    with pytest.raises(StageInterruptedError):
        store.get("training", RECIPE, first, resumable=True)
    assert not list((tmp_path / "training").glob("*.failed.json"))
    assert (store.get("training", RECIPE, second, resumable=True).path / "step").read_text() == "10"


def test_a_build_that_is_not_resumable_starts_clean(tmp_path):
    def first(folder):
        (folder / "rest").write_text("x")
        raise StageInterruptedError

    store = Store(tmp_path)
    with pytest.raises(StageInterruptedError):
        store.get("corpus", RECIPE, first)
    assert not (store.get("corpus", RECIPE, build).path / "rest").exists()


def test_the_manifest_tells_recipe_and_checksums(tmp_path):
    entry = Store(tmp_path).get("corpus", RECIPE, build)
    manifest = json.loads((entry.path / "manifest.json").read_text())
    assert manifest["recipe"] == RECIPE
    # sha256 of the bytes "1 2 3", from coreutils' sha256sum
    assert manifest["files"]["sub/numbers.txt"]["bytes"] == 5
    assert len(manifest["files"]["sub/numbers.txt"]["sha256"]) == 64


def test_a_root_that_is_no_folder_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="HEADDYN_CACHE"):
        Store(tmp_path / "file" / "cache")


def test_a_full_disk_is_said_in_one_line_and_leaves_no_entry(tmp_path):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no space left for .*HEADDYN_CACHE"):
        Store(tmp_path).get("corpus", RECIPE, full)
    assert Store(tmp_path).find("corpus", RECIPE) is None
    assert "cannot be written" in str(disk_error(OSError(errno.EROFS, "Read-only file system"), tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/1"),
    ],
)
def test_the_disk_that_is_full_is_the_one_that_is_named(tmp_path, error):
    def full(folder):
        raise error

    with pytest.raises(OSError) as caught:
        Store(tmp_path / "cache").get("corpus", RECIPE, full)
    assert "no space left for" in str(caught.value) and str(tmp_path / "cache") in str(caught.value)
    assert disk_error(caught.value, tmp_path / "out") is caught.value  # a run does not blame its own folder for it
    assert disk_error(ValueError("no number"), tmp_path) is None


def test_a_build_that_was_killed_before_its_rename_is_finished_and_found(tmp_path):
    key = recipe_key("training", RECIPE)
    partial = tmp_path / "training" / f"{key}.partial"
    partial.mkdir(parents=True)
    build(partial)
    (partial / "manifest.json").write_text("{}")  # written, and the process killed before the rename
    first = Store(tmp_path).get("training", RECIPE, lambda folder: None, resumable=True)
    assert "manifest.json" not in json.loads((first.path / "manifest.json").read_text())["files"]
    again = Store(tmp_path).get("training", RECIPE, lambda folder: pytest.fail("it was finished"))
    assert again.path == first.path and not list((tmp_path / "training").glob("*.damaged-*"))
