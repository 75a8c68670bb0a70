"""Muon on the hidden matrices, AdamW on everything else (science.md §4).

Shape suffixes: N matrices of one shape, stacked; O outputs and I inputs of a linear layer.
"""

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from headdyn.models.decoder import Decoder
from headdyn.training.settings import TrainSettings

_HIDDEN_MATRIX = re.compile(r"blocks\.\d+\.(attention\.[qkvo]|mlp\.(gate|up|down))\.weight")
_NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class ParameterSplit:
    """The parameters of each optimizer, by name. Every parameter is in exactly one of the two, a tied one once."""

    muon: Mapping[str, nn.Parameter]
    adamw: Mapping[str, nn.Parameter]


def split_parameters(decoder: Decoder) -> ParameterSplit:
    """Muon trains q, k, v, o, gate, up and down of every layer, each as a matrix of its own.

    AdamW trains the rest: embedding, learned positions, an untied unembedding, gains of norms, all biases.
    """
    named = dict(decoder.named_parameters())
    muon = {name: parameter for name, parameter in named.items() if _HIDDEN_MATRIX.fullmatch(name)}
    return ParameterSplit(muon, {name: parameter for name, parameter in named.items() if name not in muon})


@functools.cache
def newton_schulz() -> Callable[..., Tensor]:
    """muon-optimizer's `zeropower_via_newtonschulz5`, which orthogonalises matrices and stacks of them in bfloat16.

    Raises ImportError if the package is absent, or if another one has its import name, such as PyPI's unrelated `muon`.
    """
    if importlib.util.find_spec("muon") is None:
        raise ImportError("muon-optimizer is not installed; run: pip install muon-optimizer")
    try:
        from muon import zeropower_via_newtonschulz5
    except Exception as error:  # whatever another package may raise when imported
        raise ImportError(
            f"the installed module `muon` is {_what_is_muon()}, not muon-optimizer ({error}); "
            "run: pip uninstall muon && pip install --force-reinstall --no-deps muon-optimizer"
        ) from error
    return zeropower_via_newtonschulz5


def _what_is_muon() -> str:
    try:
        return f"PyPI's unrelated package `muon` {importlib.metadata.version('muon')}"
    except importlib.metadata.PackageNotFoundError:
        spec = importlib.util.find_spec("muon")
        return f"a module at {spec.origin if spec else 'an unknown place'}"


class Muon:
    """Nesterov momentum, orthogonalised by Newton–Schulz: Jordan et al. 2024, as muon-optimizer computes it.

    The update of a matrix [O, I] is scaled by √max(1, O/I), the scale for which a rate of 0.02 is meant. Matrices of
    the same shape form a stack, so the number of kernels does not grow with the model's depth.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float, *, compiled: bool = False) -> None:
        self.decay = momentum
        self.stacks: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            self.stacks.setdefault((parameter.shape[0], parameter.shape[1]), []).append(parameter)
        self.momentum = {
            shape: torch.zeros(len(stack), *shape, dtype=stack[0].dtype, device=stack[0].device)
            for shape, stack in self.stacks.items()
        }
        self.newton_schulz = newton_schulz()
        self._update = torch.compile(self._direction, dynamic=False) if compiled else self._direction

    @torch.no_grad()
    def step(self, lr: float, finite: Bool[Tensor, ""]) -> None:
        """Update every matrix, unless `finite` is false."""
        for shape, stack in self.stacks.items():
            gradient_NOI = torch.stack([_gradient(parameter) for parameter in stack])
            update_NOI = self._update(gradient_NOI, self.momentum[shape], finite)
            torch._foreach_add_(stack, list(update_NOI.unbind()), alpha=-lr)

    def _direction(
        self, gradient_NOI: Float[Tensor, "N O I"], momentum_NOI: Float[Tensor, "N O I"], finite: Bool[Tensor, ""]
    ) -> Float[Tensor, "N O I"]:
        gradient_NOI = torch.where(finite, gradient_NOI, 0)
        momentum_NOI.lerp_(gradient_NOI, 1 - self.decay)
        update_NOI = self.newton_schulz(gradient_NOI.lerp(momentum_NOI, self.decay), steps=_NEWTON_SCHULZ_STEPS)
        outputs, inputs = gradient_NOI.shape[1:]
        update_NOI = update_NOI * max(1, outputs / inputs) ** 0.5
        return torch.where(finite, update_NOI, 0).to(gradient_NOI.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of every stack, by shape."""
        return {f"{outputs}x{inputs}": stack for (outputs, inputs), stack in self.momentum.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for (outputs, inputs), stack in self.momentum.items():
            stack.copy_(state[f"{outputs}x{inputs}"])


class AdamW:
    """`torch.optim.AdamW(fused=True)` without weight decay: the same updates to the bit, and the same form of state.

    It calls that optimizer's own function, because the class around it loads torch.compile whether or not anything is
    compiled: 1.7 s of a run's start.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float]) -> None:
        self.parameters, self.betas = list(parameters), betas
        self.state = {number: _untrained(parameter) for number, parameter in enumerate(self.parameters)}

    @torch.no_grad()
    def step(self, lr: float, finite: Bool[Tensor, ""]) -> None:
        """Update every parameter that took part in the loss, unless `finite` is false."""
        updated = [number for number, parameter in enumerate(self.parameters) if parameter.grad is not None]
        states = [self.state[number] for number in updated]
        adamw(
            [self.parameters[number] for number in updated],
            [_gradient(self.parameters[number]) for number in updated],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=(~finite).float(),  # the kernel skips itself by this flag, as it does under a GradScaler
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and both moments, by the parameter's number."""
        return {"state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, saved in state["state"].items():
            for name, tensor in self.state[number].items():
                tensor.copy_(saved[name])


def _untrained(parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state of a parameter that was never updated."""
    moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **moments}


class Optimizers:
    """Both optimizers of a training. The learning rates are arguments of every step."""

    def __init__(self, decoder: Decoder, settings: TrainSettings, *, compiled: bool = False) -> None:
        split = split_parameters(decoder)
        self.clip_norm = settings.clip_norm
        self.parameters = [*split.muon.values(), *split.adamw.values()]
        self.muon = Muon(split.muon.values(), settings.muon_momentum, compiled=compiled)
        self.adamw = AdamW(split.adamw.values(), settings.adamw_betas)

    def step(self, *, muon_lr: float, adamw_lr: float, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Clip the norm of all gradients to `clip_norm`, update the weights and drop the gradients.

        Returns the norm before clipping. If it or the loss is not finite, no weight changes; the device decides that.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        self.muon.step(muon_lr, finite)
        self.adamw.step(adamw_lr, finite)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a hidden matrix took no part in the loss"
    return parameter.grad
