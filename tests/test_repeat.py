"""A recorded run is repeated from its manifest alone, and what differs is said."""

import json

import pytest

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord, read_manifest, write_manifest
from headdyn.core.settings import ConfigError
from headdyn.core.store import file_hash
from headdyn.repeat import changed_surroundings, compare, differing_files, plan_repeat
from headdyn.run import main
from tests.commands import TINY, only, run


def table(**rows):
    tables = [HeadTable.whole(name, value, n=4, unit="sequence") for name, value in rows.items()]
    return HeadTable.concat(tables)


def test_tables_are_compared_row_by_row_and_to_the_bit():
    assert compare(table(a=0.1, b=2.0), table(b=2.0, a=0.1)) == []
    (difference,) = compare(table(a=0.1, b=2.0), table(a=0.1, b=2.0 + 2**-51))
    assert difference == ("metric b", "value", 2**-51)
    lacking = compare(table(a=0.1, b=2.0), table(a=0.1))
    assert ("metric b", "value", float("inf")) in lacking and {place for place, _, _ in lacking} == {"metric b"}


def test_what_else_has_changed_is_said():
    before = {"versions": {"torch": "2.13", "numpy": "2.0"}, "git": "abc", "stages": {"corpus": {"key": "1"}}}
    after = {"versions": {"torch": "2.14", "numpy": "2.0"}, "git": "abc", "stages": {"corpus": {"key": "2"}}}
    lines = changed_surroundings(before, after)
    assert lines[0] == "torch was 2.13, is 2.14" and "the corpus differs" in lines[1] and len(lines) == 2
    assert changed_surroundings(before, before) == []


@pytest.mark.parametrize("arguments", [["--repeat"], ["--repeat", "a", "seed=1"], ["seed=1", "--repeat", "a"]])
def test_repeat_takes_one_folder(arguments, capsys):
    assert main(arguments) == 2
    assert "takes one run's folder" in capsys.readouterr().err


def test_a_folder_without_a_complete_run_is_refused(tmp_path, capsys):
    assert main(["--repeat", str(tmp_path)]) == 2
    assert "its run is absent; name the folder of a complete run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_matches_its_repeat_and_a_changed_record_does_not(tmp_path):
    assert run(tmp_path, *TINY, "analysis=[loss,attention]", "position_enc=drope").returncode == 0
    folder = only(tmp_path / "out" / "outputs")
    done = run(tmp_path, "--repeat", str(folder))
    same = "are the same to the bit, and so are its curves, patterns and figures"
    assert done.returncode == 0 and same in done.stdout, done.stdout + done.stderr
    rows = HeadTable.read(folder / "heads.parquet").rows()
    rows[0]["value"] += 1e-12
    HeadTable.from_rows(rows).write(folder / "heads.parquet")
    manifest = read_manifest(folder, results=False) | {"git": "another"}
    manifest["sha256"]["heads.parquet"] = file_hash(folder / "heads.parquet")  # or it would be damage
    write_manifest(folder, manifest)
    done = run(tmp_path, "--repeat", str(folder))
    assert done.returncode == 1 and "differs: 1 of" in done.stdout and "the code was another" in done.stdout


def test_a_repeat_itself_is_not_repeated(tmp_path):
    """Its folder would be removed, and what is then measured compared with itself."""
    folder = tmp_path / "x-repeated" / "x"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="it is a repeat itself; name the folder of the run that it repeats"):
        plan_repeat(folder)
    assert folder.is_dir()


def test_curves_patterns_and_figures_are_compared_too_but_not_speed(tmp_path):
    """Rows may be the same where a training went another way."""
    runs = []
    for name, loss, speed, pattern in (("a", 2.5, 900.0, "x"), ("b", 2.5, 800.0, "x"), ("c", 2.6, 900.0, "y")):
        folder = tmp_path / name
        folder.mkdir()
        curves = (
            {"step": 1, "name": "train_loss", "value": loss},
            {"step": 1, "name": "tokens_per_second", "value": speed},
        )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in curves))
        sums = {
            "heads.parquet": name,
            "config.yaml": name,
            "patterns.safetensors": pattern,
            "figures/loss.json": name,
        }
        (folder / "figures").mkdir()  # how a figure looks may change with the code
        (folder / "figures" / "loss.json").write_text(json.dumps({"datasets": [pattern], "config": name}))
        runs.append(RunRecord(folder, {"sha256": sums}, {}))
    assert differing_files(runs[0], runs[1]) == []
    assert differing_files(runs[0], runs[2]) == ["metrics.jsonl", "patterns.safetensors", "figures/loss.json"]


def test_a_repeat_that_fails_says_why_in_a_line(monkeypatch, capsys):
    """A run recorded on a GPU, say, on a machine without one."""

    def fails(*_):
        raise RuntimeError("device=cuda is not here")

    monkeypatch.setattr("headdyn.repeat.plan_repeat", lambda folder: (None, None))
    monkeypatch.setattr("headdyn.repeat.repeat", fails)
    assert main(["--repeat", "outputs/x"]) == 1
    assert capsys.readouterr().err == "headdyn: --repeat outputs/x: RuntimeError: device=cuda is not here\n"


def test_an_interruption_before_any_job_began_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("headdyn.run.do", interrupted)
    assert main(["mode=smoke"]) == 130
    assert capsys.readouterr().err == "headdyn: interrupted\n"
