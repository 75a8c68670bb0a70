from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from muon import SingleDeviceMuonWithAuxAdam
from torch import Tensor

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.training.optimizers import AdamW, Muon, Optimizers, ParameterSplit, newton_schulz, split_parameters
from headdyn.training.settings import TrainSettings
from tests.small_models import CONFIGS, GQA, MHA, NEOX, drawn

SETTINGS = TrainSettings(steps=10, batch_size=1, warmup_share=0.0, snapshots=2)
MUON_LR, ADAMW_LR = 0.02, 3e-3
LAPTOP = DecoderConfig(
    vocab_size=64, num_layers=2, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=344
)  # the shapes that laptop runs give Newton–Schulz


# -- which optimizer trains what --------------------------------------------------------------------------------------


def each_exactly_once(split: ParameterSplit, decoder: Decoder) -> bool:
    trained = [id(parameter) for parameter in (*split.muon.values(), *split.adamw.values())]
    return sorted(trained) == sorted(id(parameter) for parameter in decoder.parameters())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_is_trained_exactly_once(config: DecoderConfig) -> None:
    decoder = Decoder(config)
    split = split_parameters(decoder)
    assert each_exactly_once(split, decoder)
    matrices_per_layer = 7 if config.mlp == "swiglu" else 6
    assert len(split.muon) == matrices_per_layer * config.num_layers
    assert all(parameter.ndim == 2 for parameter in split.muon.values())
    assert not any("embed" in name or "positions" in name for name in split.muon)

    twice = ParameterSplit(split.muon, split.adamw | {"again": next(iter(split.muon.values()))})
    missing = ParameterSplit({name: p for name, p in split.muon.items() if "gate" not in name and "up" not in name}, {})
    assert not each_exactly_once(twice, decoder) and not each_exactly_once(missing, decoder)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    split = split_parameters(Decoder(dataclasses.replace(NEOX, num_layers=1)))
    layer = "blocks.0."
    hidden = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.up", "mlp.down")
    norms = (*(layer + n for n in ("norm1", "norm2")), "norm")
    assert set(split.muon) == {f"{layer}{name}.weight" for name in hidden}
    assert set(split.adamw) == {
        "embed.weight",
        "unembed.weight",
        *(f"{layer}{name}.bias" for name in hidden),
        *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")),
    }


# -- the same updates as the package's own optimizer ------------------------------------------------------------------


def gradients(decoder: Decoder, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [1e-2 * torch.randn(parameter.shape, generator=generator) for parameter in decoder.parameters()]


def packages_own(decoder: Decoder) -> SingleDeviceMuonWithAuxAdam:
    split = split_parameters(decoder)
    hidden = {"params": list(split.muon.values()), "lr": MUON_LR, "momentum": 0.95, "use_muon": True}
    rest = {"params": list(split.adamw.values()), "lr": ADAMW_LR, "betas": (0.9, 0.95), "eps": 1e-8, "use_muon": False}
    return SingleDeviceMuonWithAuxAdam([hidden, rest])


def distance_after(config: DecoderConfig, steps: int, muon: type[Muon] = Muon) -> dict[str, float]:
    """Largest difference between our weights and the package's after steps on the same clipped gradients."""
    ours = drawn(config, dtype=torch.float32)
    theirs = copy.deepcopy(ours)
    optimizer, reference = Optimizers(ours, SETTINGS), packages_own(theirs)
    optimizer.muon = muon(split_parameters(ours).muon.values(), SETTINGS.muon_momentum)
    for step in range(steps):
        for decoder in (ours, theirs):
            for parameter, gradient in zip(decoder.parameters(), gradients(decoder, step), strict=True):
                parameter.grad = gradient
        optimizer.step(muon_lr=MUON_LR, adamw_lr=ADAMW_LR, loss=torch.tensor(1.0))
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), SETTINGS.clip_norm)
        reference.step()
    split = split_parameters(ours)
    target = dict(theirs.named_parameters())

    def furthest(parameters: Any) -> float:
        return max((parameter - target[name]).abs().max().item() for name, parameter in parameters.items())

    return {"muon": furthest(split.muon), "adamw": furthest(split.adamw)}


@pytest.mark.parametrize("config", [MHA, GQA, NEOX, LAPTOP], ids=["mha", "gqa", "neox", "laptop"])
def test_agrees_with_the_packages_optimizer(config: DecoderConfig) -> None:
    apart = distance_after(config, steps=6)
    # Equal to the bit at mha's and gqa's shapes. Elsewhere the product of a stack sums in another order than that of
    # a single matrix, and bfloat16 keeps 8 bits: 1.6e-4 (neox) and 3.1e-4 (laptop) in weights that moved by 0.12.
    assert apart["muon"] <= 1e-3
    assert apart["adamw"] <= 1e-6  # one unit in the last place of 1.2e-7: the package divides in another order


class WithoutScale(Muon):
    def _direction(self, gradient_NOI: Tensor, momentum_NOI: Tensor, finite: Tensor) -> Tensor:
        outputs, inputs = gradient_NOI.shape[1:]
        return super()._direction(gradient_NOI, momentum_NOI, finite) / max(1, outputs / inputs) ** 0.5


class WithoutNesterov(Muon):
    def _direction(self, gradient_NOI: Tensor, momentum_NOI: Tensor, finite: Tensor) -> Tensor:
        momentum_NOI.lerp_(gradient_NOI, 1 - self.decay)
        outputs, inputs = gradient_NOI.shape[1:]
        return self.newton_schulz(momentum_NOI, steps=5).float() * max(1, outputs / inputs) ** 0.5


class FusedStack(Muon):
    """Orthogonalises the matrices of a stack as one tall matrix, as a fused qkv would be."""

    def _direction(self, gradient_NOI: Tensor, momentum_NOI: Tensor, finite: Tensor) -> Tensor:
        tall = super()._direction(gradient_NOI.flatten(0, 1)[None], momentum_NOI.flatten(0, 1)[None], finite)
        return tall.reshape_as(gradient_NOI)


@pytest.mark.parametrize("mutant", [WithoutScale, WithoutNesterov, FusedStack])
def test_a_wrong_muon_disagrees(mutant: type[Muon]) -> None:
    assert distance_after(GQA, steps=6, muon=mutant)["muon"] > 5e-3  # 0.012 to 0.06


# -- AdamW without the class of torch.optim ---------------------------------------------------------------------------


def torchs_own(decoder: Decoder) -> torch.optim.AdamW:
    parameters = split_parameters(decoder).adamw.values()
    return torch.optim.AdamW(parameters, lr=1.0, betas=SETTINGS.adamw_betas, weight_decay=0.0, fused=True)


def adamw_agrees(ours: AdamW, theirs: torch.optim.AdamW, steps: int = 6) -> bool:
    """Whether both give the same bits on the same gradients; one step is not finite, one parameter has no part."""
    (group,) = theirs.param_groups
    same = True
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        lr, finite = ADAMW_LR * (step + 1), torch.tensor(step != 2)
        for number, (one, other) in enumerate(zip(ours.parameters, group["params"], strict=True)):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = (None, None) if number == 1 else (gradient, gradient.clone())
        ours.step(lr, finite)
        group["lr"], theirs.found_inf = lr, (~finite).float()  # type: ignore[attr-defined]
        theirs.step()
        same &= all(map(torch.equal, ours.parameters, group["params"]))
    return same


def test_adamw_is_torchs_to_the_bit_and_goes_on_from_its_state() -> None:
    ours = drawn(NEOX, dtype=torch.float32)
    theirs, later = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer, reference = AdamW(split_parameters(ours).adamw.values(), SETTINGS.adamw_betas), torchs_own(theirs)
    before = [parameter.clone() for parameter in optimizer.parameters]
    assert adamw_agrees(optimizer, reference)
    moved = [not torch.equal(*pair) for pair in zip(before, optimizer.parameters, strict=True)]
    assert moved == [number != 1 for number in range(len(moved))]

    later.load_state_dict(ours.state_dict())
    continued = AdamW(split_parameters(later).adamw.values(), SETTINGS.adamw_betas)
    continued.load_state_dict(copy.deepcopy(reference.state_dict()))
    assert adamw_agrees(continued, reference)
    assert not adamw_agrees(AdamW(split_parameters(later).adamw.values(), SETTINGS.adamw_betas), reference)
    assert not adamw_agrees(AdamW(split_parameters(later).adamw.values(), (0.9, 0.99)), reference)


# -- clipping, and steps that must not happen -------------------------------------------------------------------------


def stepped(decoder: Decoder, scale: float, loss: float = 1.0) -> tuple[float, list[Tensor]]:
    """The norm reported, and the weights before minus after."""
    optimizer = Optimizers(decoder, SETTINGS)
    for parameter, gradient in zip(decoder.parameters(), gradients(decoder, 0), strict=True):
        parameter.grad = scale * gradient
    before = [parameter.detach().clone() for parameter in decoder.parameters()]
    norm = optimizer.step(muon_lr=MUON_LR, adamw_lr=ADAMW_LR, loss=torch.tensor(loss))
    assert all(parameter.grad is None for parameter in decoder.parameters())
    return norm.item(), [old - new for old, new in zip(before, decoder.parameters(), strict=True)]


def test_the_norm_is_that_before_clipping_and_moments_are_clipped() -> None:
    decoder = drawn(GQA, dtype=torch.float32)
    exact = torch.cat([100 * gradient.flatten() for gradient in gradients(decoder, 0)]).norm().item()
    optimizer = Optimizers(decoder, SETTINGS)
    for parameter, gradient in zip(decoder.parameters(), gradients(decoder, 0), strict=True):
        parameter.grad = 100 * gradient
    norm = optimizer.step(muon_lr=MUON_LR, adamw_lr=ADAMW_LR, loss=torch.tensor(1.0))
    assert norm.item() == pytest.approx(exact, rel=1e-6) and exact > 10 * SETTINGS.clip_norm
    momenta = [*optimizer.muon.momentum.values(), *(state["exp_avg"] for state in optimizer.adamw.state.values())]
    # After one step Muon's momentum is (1 − 0.95) and Adam's (1 − 0.9) of the clipped gradient.
    shares = [0.05] * len(optimizer.muon.momentum) + [0.1] * len(optimizer.adamw.state)
    clipped = torch.stack([m.norm() / share for m, share in zip(momenta, shares, strict=True)]).norm().item()
    assert clipped == pytest.approx(SETTINGS.clip_norm, rel=1e-4)


@pytest.mark.parametrize(("scale", "loss"), [(1.0, float("nan")), (1.0, float("inf")), (float("nan"), 1.0)])
def test_no_weight_moves_where_a_number_is_not_finite(scale: float, loss: float) -> None:
    _, moved = stepped(drawn(GQA, dtype=torch.float32), scale, loss)
    assert all(torch.equal(change, torch.zeros_like(change)) for change in moved)
    _, moved = stepped(drawn(GQA, dtype=torch.float32), 1.0)
    assert all(change.abs().max() > 1e-4 for change in moved)


def test_the_state_continues_to_the_same_bits() -> None:
    decoder = drawn(GQA, dtype=torch.float32)
    optimizer = Optimizers(decoder, SETTINGS)

    def step(decoder: Decoder, optimizer: Optimizers, number: int) -> None:
        for parameter, gradient in zip(decoder.parameters(), gradients(decoder, number), strict=True):
            parameter.grad = gradient
        optimizer.step(muon_lr=MUON_LR, adamw_lr=ADAMW_LR, loss=torch.tensor(1.0))

    for number in range(3):
        step(decoder, optimizer, number)
    other = copy.deepcopy(decoder)
    continued, forgetful = Optimizers(other, SETTINGS), copy.deepcopy(decoder)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(decoder, optimizer, 3)
    step(other, continued, 3)
    step(forgetful, Optimizers(forgetful, SETTINGS), 3)
    pairs = list(zip(decoder.parameters(), other.parameters(), forgetful.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


# -- the wrong package ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_import(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    newton_schulz.cache_clear()
    monkeypatch.delitem(sys.modules, "muon")
    yield monkeypatch
    newton_schulz.cache_clear()


def test_the_unrelated_package_of_that_name_is_recognised(fresh_import: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "muon").mkdir()
    (tmp_path / "muon" / "__init__.py").write_text("class MuData: ...\n")
    (tmp_path / "muon-0.1.7.dist-info").mkdir()
    (tmp_path / "muon-0.1.7.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: muon\nVersion: 0.1.7\n")
    fresh_import.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"unrelated package `muon` 0\.1\.7.*pip uninstall muon && pip install"):
        Optimizers(Decoder(MHA), SETTINGS)


def test_a_module_of_that_name_is_located(fresh_import: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "muon.py").write_text("detector = 'CMS'\n")
    fresh_import.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"a module at .*muon\.py, not muon-optimizer"):
        newton_schulz()


def test_an_absent_package_says_what_to_install(fresh_import: pytest.MonkeyPatch) -> None:
    fresh_import.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install muon-optimizer"):
        newton_schulz()
