"""Activations of a forward pass: which sites can be recorded, and edits that replace their values."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SITES = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_out", "resid_post")
_BY_HEAD = ("q", "k", "v", "z")  # shaped BTHd or BTGd; the others, pattern apart, are BTD


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Replace activations at a site: `x = torch.where(where, value, x)`. `where=None` replaces all of them.

    `value` and `where` are broadcast to x. Shapes of x: BTD at resid_pre, attn_out, mlp_out and resid_post; BTHd at q
    and z; BTGd at k and v; BHQK at pattern, whose rows are not renormalised. `where` may differ between rows of a
    batch, so that one batch can hold many patches. Several edits of one site apply in the order given. If a value or
    mask cannot be broadcast, the call that uses the edit raises ValueError.
    """

    site: str
    layer: int
    value: Tensor
    where: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """What `Decoder.trace` returns: the logits, if requested, and recorded activations such as `trace["z", 6]`."""

    logits: Tensor | None
    values: Mapping[tuple[str, int], Tensor]

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if key not in self.values:
            raise KeyError(f"site {key} was not traced; traced: {sorted(self.values)}")
        return self.values[key]


class Tap:
    """Applies edits during a forward pass, and records the requested sites after their edits."""

    def __init__(self, sites: Iterable[str], layers: Iterable[int], edits: Sequence[Edit]) -> None:
        self.recorded = {(site, layer) for site in sites for layer in layers}
        self.edits = edits
        self.values: dict[tuple[str, int], Tensor] = {}

    def concerns(self, site: str, layer: int) -> bool:
        """Whether the site is recorded or edited at this layer; otherwise it need not be computed."""
        return (site, layer) in self.recorded or any(e.site == site and e.layer == layer for e in self.edits)

    def __call__(self, site: str, layer: int, x: Tensor) -> Tensor:
        """The site's value after its edits; recorded if it was requested."""
        for edit in self.edits:
            if edit.site == site and edit.layer == layer:
                _check_broadcast(edit, x)
                value = edit.value.to(x.dtype)
                x = value.expand_as(x) if edit.where is None else torch.where(edit.where, value, x)
        if (site, layer) in self.recorded:
            self.values[site, layer] = x
        return x


def _check_broadcast(edit: Edit, x: Tensor) -> None:
    """Raise ValueError for a value or mask that does not broadcast to x; torch.where would silently expand x to it."""
    for name, tensor in (("value", edit.value), ("where", edit.where)):
        if tensor is None:
            continue
        sizes = zip(reversed(tensor.shape), reversed(x.shape), strict=False)
        if tensor.ndim > x.ndim or any(size not in (1, needed) for size, needed in sizes):
            raise ValueError(
                f"edit of {edit.site!r} at layer {edit.layer}: {name} of shape {tuple(tensor.shape)} does not "
                f"broadcast to the site's {tuple(x.shape)}"
            )


def first_position(edit: Edit) -> Edit:
    """The edit for one generated token: its values and mask at the first position of the prompt."""
    axis = -3 if edit.site in _BY_HEAD else -2

    def first(x: Tensor) -> Tensor:
        return x.narrow(axis, 0, 1) if x.ndim >= -axis else x

    return dataclasses.replace(edit, value=first(edit.value), where=None if edit.where is None else first(edit.where))
