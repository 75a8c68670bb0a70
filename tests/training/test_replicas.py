"""One training on two processes, and in parts: the updates of one process that takes each batch whole.

The processes are torchrun's own, over gloo. Gradients agree to float32's rounding. Muon orthogonalises in bfloat16,
where a rounding can tip an entry of an update by 2^-8 of itself, so weights agree less closely than gradients.
"""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from headdyn.core.run_folder import read_metrics
from headdyn.core.settings import ConfigError
from headdyn.data.corpus import Split
from headdyn.models.checkpoints.snapshots import read_snapshot, snapshot_steps
from headdyn.plan import make_plan
from headdyn.training.loop import TrainingInterrupted
from headdyn.training.settings import TrainSettings
from tests.commands import TINY, environment, only, run
from tests.training.test_loop import StopAfter
from tests.training.tiny import SETTINGS, corpus, task, trained

LOSS_NATS, WEIGHTS = 2e-3, 2e-2  # largest differences allowed; measured on the 30 steps here: see the tests
IN_PARTS = dataclasses.replace(SETTINGS, accumulate=4)

SCRIPT = """
import sys
from pathlib import Path
from headdyn.training.loop import TrainingInterrupted
from headdyn.training.next_token import help_process_0
from headdyn.training.replicas import release
from headdyn.training.settings import process
from tests.training.test_loop import StopAfter
from tests.training.tiny import trained

if process():
    help_process_0()
else:
    root = Path(sys.argv[1])
    trained(root / "whole")
    try:
        trained(root / "stopped", should_stop=StopAfter(10))
    except TrainingInterrupted:
        pass
    trained(root / "continued")
    release()
"""


def torchrun(*arguments: str, root, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, *arguments], env=environment(root), capture_output=True, text=True, timeout=300)


def masked():
    """A corpus whose sequences have documents of different numbers, so that parts score different numbers of tokens."""
    plain = corpus()

    def with_documents(split: Split) -> Split:
        draw = np.random.default_rng(5)
        ends_NT = draw.random(split.tokens_NT.shape) < draw.uniform(0, 0.6, (len(split.tokens_NT), 1))
        return dataclasses.replace(split, documents_NT=ends_NT.cumsum(1).astype(np.uint16))

    return corpus(train=with_documents(plain.train), val=with_documents(plain.val), mask_documents=True)


def gradients(folder, settings: TrainSettings) -> dict[str, torch.Tensor]:
    training = task(folder, settings, corpus=masked())
    for part in range(training.parts):
        sum(training.losses(3, part).values()).backward()
    return {name: parameter.grad for name, parameter in training.decoder.named_parameters()}


def test_the_gradients_of_the_parts_add_up_to_the_whole_batchs(tmp_path):
    whole, parts = gradients(tmp_path, SETTINGS), gradients(tmp_path, IN_PARTS)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-7)


def largest_difference(one, other) -> float:
    one, other = ({**one.state_dict()}, {**other.state_dict()})
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_close_trainings(folder, result, reference_folder, reference) -> None:
    for step, path in snapshot_steps(folder / "snapshots").items():
        ours, theirs = read_snapshot(path)[0], read_snapshot(reference.snapshots[step])[0]
        assert largest_difference(ours, theirs) <= WEIGHTS, step
    for name in ("train_loss_nats", "val_loss_nats"):
        ours, theirs = (dict(read_metrics(where / "metrics.jsonl")[name]) for where in (folder, reference_folder))
        assert ours.keys() == theirs.keys()
        assert max(abs(ours[step] - theirs[step]) for step in ours) <= LOSS_NATS


def test_a_training_in_parts_is_that_of_whole_batches(tmp_path):
    whole = trained(tmp_path / "whole")
    result = trained(tmp_path / "parts", IN_PARTS)
    assert_close_trainings(tmp_path / "parts", result, tmp_path / "whole", whole)
    other = trained(tmp_path / "other", schedule=task(tmp_path).schedule.__class__(seed=1))
    assert largest_difference(other.decoder, whole.decoder) > 2 * WEIGHTS  # other batches are told apart


def test_two_processes_make_the_training_of_one_and_each_continues_the_others(tmp_path):
    with pytest.raises(TrainingInterrupted):
        trained(tmp_path / "continued", should_stop=StopAfter(10))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script), str(tmp_path), root=tmp_path)
    assert done.returncode == 0, done.stderr
    reference = trained(tmp_path / "reference")
    trained(tmp_path / "stopped")  # goes on alone from the state of two
    for name in ("whole", "stopped", "continued"):
        assert_close_trainings(tmp_path / name, None, tmp_path / "reference", reference)


@pytest.mark.slow
def test_torchrun_does_a_whole_run_with_its_recalibration(tmp_path):
    arguments = (*TINY, "position_enc=drope", "analysis=[loss]")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    done = torchrun("-m", "headdyn.run", *arguments, root=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert run(tmp_path / "one", *arguments).returncode == 0
    losses = {}
    for name in ("one", "two"):
        folder = only(tmp_path / name / "out" / "outputs")
        losses[name] = json.loads((folder / "summary.json").read_text())["recalibration"]["val_loss_nats"]
        machine = json.loads((folder / "manifest.json").read_text())["machine"]
        assert machine.get("processes", 1) == (1 if name == "one" else 2)
    assert losses["one"].keys() == losses["two"].keys()
    assert all(abs(losses["one"][step] - losses["two"][step]) <= LOSS_NATS for step in losses["one"])
    again = torchrun("-m", "headdyn.run", *arguments, root=tmp_path / "two")  # nothing to train: all of them end
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "mode=smoke", "seed=0,1"], "leave -m out"),
        (["mode=smoke", "train.batch_size=18"], "train.batch_size=18 is not shared out evenly among 4 processes"),
        (["mode=smoke", "train.accumulate=8"], "make it a multiple of 32"),
        (
            ["mode=smoke", "model=huggingface", "model.name=a", "data=comparisons", "analysis=[circuits]"],
            "is trained already",
        ),
    ],
)
def test_what_torchrun_cannot_share_out_is_refused(monkeypatch, arguments, words):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=words):
        make_plan(arguments)
