"""Looking into a forward pass and changing it: what can be asked for, and what replaces what."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SITES = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_out", "resid_post")
_BY_HEAD = ("q", "k", "v", "z")  # shaped BTHd or BTGd; the others, pattern apart, are BTD


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Replace a site's value: `x = torch.where(where, value, x)`, both broadcast to x; `where=None` is everywhere.

    `where` may differ by row, which is how many patching cells share one batch. Several edits of a site apply in the
    order given. Site shapes: resid_pre, attn_out, mlp_out, resid_post BTD; q and z BTHd; k and v BTGd;
    pattern BHQK (rows are not renormalised). A value or mask that does not broadcast to its site is a ValueError
    of the call that uses it.
    """

    site: str
    layer: int
    value: Tensor
    where: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """What `Decoder.trace` returns: the logits asked for and the site values, as `trace["z", 6]`."""

    logits: Tensor | None
    values: Mapping[tuple[str, int], Tensor]

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if key not in self.values:
            raise KeyError(f"site {key} was not traced; traced: {sorted(self.values)}")
        return self.values[key]


class Tap:
    """Records the sites asked for, after applying the edits aimed at them."""

    def __init__(self, sites: Iterable[str], layers: Iterable[int], edits: Sequence[Edit]) -> None:
        self.recorded = {(site, layer) for site in sites for layer in layers}
        self.edits = edits
        self.values: dict[tuple[str, int], Tensor] = {}

    def concerns(self, site: str, layer: int) -> bool:
        """Whether the site is recorded or edited there, so that it must be formed at all."""
        return (site, layer) in self.recorded or any(e.site == site and e.layer == layer for e in self.edits)

    def __call__(self, site: str, layer: int, x: Tensor) -> Tensor:
        """The site's value after its edits; recorded if it was asked for."""
        for edit in self.edits:
            if edit.site == site and edit.layer == layer:
                _check_broadcast(edit, x)
                value = edit.value.to(x.dtype)
                x = value.expand_as(x) if edit.where is None else torch.where(edit.where, value, x)
        if (site, layer) in self.recorded:
            self.values[site, layer] = x
        return x


def _check_broadcast(edit: Edit, x: Tensor) -> None:
    """Refuse what torch.where would accept by growing x, as a value with more rows than the batch."""
    for name, given in (("value", edit.value), ("where", edit.where)):
        if given is None:
            continue
        sizes = zip(reversed(given.shape), reversed(x.shape), strict=False)
        if given.ndim > x.ndim or any(size not in (1, needed) for size, needed in sizes):
            raise ValueError(
                f"edit of {edit.site!r} at layer {edit.layer}: {name} of shape {tuple(given.shape)} does not broadcast "
                f"to the site's {tuple(x.shape)}"
            )


def first_position(edit: Edit) -> Edit:
    """The edit as it acts on one new token: its own first position, on the axis that lines up with the site's T."""
    axis = -3 if edit.site in _BY_HEAD else -2

    def first(x: Tensor) -> Tensor:
        return x.narrow(axis, 0, 1) if x.ndim >= -axis else x

    return dataclasses.replace(edit, value=first(edit.value), where=None if edit.where is None else first(edit.where))
