"""Commands that nobody would think of: each is planned, or refused in one line within two seconds, and never a traceback.

HEADDYN_FUZZ says how many are tried, 100 where it is not set; `make faults` tries 2,000. A tenth as many of those that
are refused are given once more to a process of their own.
"""

import os
import pickle
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import headdyn.api
import headdyn.run
from headdyn.composition import CONF
from headdyn.plan import make_plan
from tests import commands

COUNT = int(os.environ.get("HEADDYN_FUZZ", "100"))
GROUPS = sorted(folder.name for folder in Path(CONF).iterdir() if folder.is_dir() and folder.name != "hydra")


def keys_of(node: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        keys += keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return keys


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


KEYS = keys_of(make_plan(["mode=smoke"]).jobs[0].resolved)
HYDRA = [
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.launcher",
    "hydra.sweeper.params",
    "hydra.mode",
]
ODD = st.sampled_from(
    [
        *("", "null", "true", "nan", "inf", "-inf", "1e400", "-0.0", "0", "-1", "1e20", "0x10", "1_000", "???", "~"),
        *(
            "[]",
            "{}",
            "[1",
            "{a:1}",
            "[[]]",
            "[null]",
            "'",
            '"',
            "a b",
            "ü",
            "\u202e",
            "日本",
            "../..",
            "/",
            "a=b",
            "$",
        ),
        *("${seed}", "${train.steps}", "${nothing}", "${oc.env:NOPE}", "${oc.env:HOME}", "${", "${headdyn_run:}"),
        *(
            "1,2",
            "a,",
            ",",
            "range(3)",
            "range(0,0)",
            "choice(1,2)",
            "choice()",
            "glob(*)",
            "interval(0,1)",
            "sort(2,1)",
        ),
        *("shuffle(1,2)", "int(3.7)", "str(1)", "extend_list(1)", "9" * 30, "a" * 300, "os.system", "headdyn.config"),
    ]
)
NUMBERS = st.integers() | st.floats()
VALUES = ODD | NUMBERS.map(str) | st.lists(NUMBERS, max_size=3).map(str) | st.text(max_size=12)
NAMES = (
    st.sampled_from(KEYS)
    | st.sampled_from([*GROUPS, *HYDRA])
    | st.sampled_from(KEYS).map(lambda key: key[:-1] + "x")
    | st.text(alphabet="abc._-/@", min_size=1, max_size=12)
    | st.just("a" * 300)
)
CHOICES = st.sampled_from([f"{group}={option}" for group in GROUPS for option in options_of(group)])
OVERRIDES = st.builds(
    lambda sign, key, value: f"{sign}{key}={value}", st.sampled_from(["", "", "", "+", "++"]), NAMES, VALUES
)
REMOVALS = NAMES.map(lambda key: f"~{key}")
ARGUMENTS = st.lists(OVERRIDES | OVERRIDES | CHOICES | REMOVALS | VALUES, min_size=1, max_size=3)
FLAGS = st.sampled_from([[], [], ["-m"], ["-m"], ["--multirun"], ["--config-dir", "nowhere"], ["--cfg"], ["-x"]])


@pytest.fixture(scope="module", autouse=True)
def nothing_is_started(tmp_path_factory):
    """Every command is answered, and none of those that are sound is begun."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADDYN_OUT", str(root / "out"))
        patch.setenv("HEADDYN_CACHE", str(root / "cache"))
        patch.setattr(sys, "argv", ["headdyn"])  # which --cfg rewrites
        patch.setattr(headdyn.api, "launch", lambda plan, arguments: started.append(plan) or 0)
        patch.chdir(root)
        yield
        assert not (root / "cache").exists()


started: list = []
refused: list[list[str]] = []


@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(flags=FLAGS, arguments=ARGUMENTS)
def test_every_command_is_planned_or_refused_in_one_line(capsys, flags, arguments):
    if any(argument.startswith("hydra.") and ("/" in argument or ".." in argument) for argument in arguments):
        return  # a folder of the user's choice, outside the test's own
    command = [*flags, *arguments]
    note(repr(command))
    started.clear()
    begun = time.process_time()
    status = headdyn.run.main(command)
    seconds = time.process_time() - begun
    printed = capsys.readouterr()
    if status == 2:
        refused.append(command)
        assert seconds < 2
        (line,) = printed.err.splitlines()
        assert line.startswith("headdyn: ") and len(line) > len("headdyn: ") + 8 and not started
    else:
        assert status == 0 and printed.err == ""
        for plan in started:
            assert len({job.name for job in plan.jobs}) == len(plan.jobs)
            assert pickle.loads(pickle.dumps(plan.jobs)) == plan.jobs


def test_refused_commands_are_refused_by_a_process_too(tmp_path):
    """In the same line, within two seconds of computing, and nothing is left behind."""
    assert len(refused) > COUNT // 10
    for command in random.Random(0).sample(refused, COUNT // 10):
        if any("\0" in argument for argument in command):
            continue  # which no process can be given
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            commands.command(*command),
            env=commands.environment(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            timeout=600,  # of waiting; what it computes for is bounded below
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = done.stderr.decode().splitlines()
        assert (done.returncode, len(lines), done.stdout) == (2, 1, b"") and lines[0].startswith("headdyn: "), command
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2, command
        assert not (tmp_path / "cache").exists() and not [*tmp_path.rglob("*.*")]
