"""The notebook runs top to bottom, and what it shows is right."""

from __future__ import annotations

import resource
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headdyn.notebook_command import NOTEBOOK
from tests.commands import environment


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("marimo")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    before = processor_seconds()
    _, shown = runpy.run_path(str(NOTEBOOK))["app"].run()
    seconds = processor_seconds() - before

    _is_right(shown)
    assert seconds < 120  # two minutes on one core; processor time, whatever else the machine does


def processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _is_right(shown: Mapping[str, Any]) -> None:
    """What the notebook worked out, against the same worked out with a hook of PyTorch, and against its own sums."""
    assert len(shown["sweep"].runs) == 6 and not shown["sweep"].failed
    decoder, tokens_BT, layer, head = (shown[name] for name in ("decoder", "tokens_BT", "layer", "head"))
    with torch.no_grad():  # by hand: the head's columns of W_O read the mean of z, and nothing else changes
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        attention = decoder.blocks[layer].attention
        z_BTHd = decoder.trace(inputs_BT, sites=("z",), layers=(layer,))["z", layer]
        mean_d = z_BTHd[:, :, head].mean((0, 1))
        hook = attention.o.register_forward_pre_hook(lambda _, given: (replaced(given[0], head, mean_d),))
        ablated_B = nats(decoder, inputs_BT, targets_BT)
        hook.remove()
        clean_B = nats(decoder, inputs_BT, targets_BT)
    assert np.allclose(shown["moved"], (ablated_B - clean_B).numpy(), atol=1e-5)
    assert shown["low"] < shown["moved"].mean() < shown["high"]
    assert float(shown["by_token_T"].sum()) == pytest.approx(shown["answer_logit"], abs=1e-4)
    assert sum(shown["by_part"].values()) == pytest.approx(shown["answer_logit"], abs=1e-4)
    (loss,) = shown["effects"].query("outcome == 'loss_nats'").to_dict("records")
    assert loss["n"] == 3 and loss["ci_low"] < loss["value"] < loss["ci_high"]


def replaced(z_BTF: torch.Tensor, head: int, mean_d: torch.Tensor) -> torch.Tensor:
    width = len(mean_d)
    return torch.cat(
        (z_BTF[..., : head * width], mean_d.expand(*z_BTF.shape[:2], width), z_BTF[..., (head + 1) * width :]), -1
    )


def nats(decoder: torch.nn.Module, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Loss of every sequence."""
    return torch.nn.functional.cross_entropy(decoder(inputs_BT).mT, targets_BT, reduction="none").mean(1)
