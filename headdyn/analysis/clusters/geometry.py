"""Heads as points: inner products between the heads of a layer, and between random heads (science.md §8 and §12).

Letters as in models/decoder.py; R draws. Circuits are compared, as no change of basis inside a head changes them.
"""

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.circuit_factors import Factors, cosines, folded
from headdyn.analysis.clusters.clusterings import centred
from headdyn.core.kept_parts import Part, parts
from headdyn.models.decoder import Decoder


def circuit_cosines(decoder: Decoder, layer: int) -> dict[str, np.ndarray]:
    """Cosines between the layer's heads, [H, H] for "qk" and "ov": heads as unit vectors, whatever their norm."""
    return {name: cosines(factors).cpu().numpy() for name, factors in folded(decoder, layer).items()}


def random_circuit_cosines(decoder: Decoder, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Cosines between random heads of one layer with the model's shape and grouping, [R, H, H].

    One draw serves both circuits: a key/value group shares right factors in QK and left ones in OV, and
    cosines are the same either way. Cosines
    do not depend on norms, and hardly on spectra: their standard deviation is about 1/D (with D 64, d 8: 0.0157 for
    flat singular values, 0.0156 for a tenfold decay). Drawing in float32 moves none by 1e-6.
    """
    c, device = decoder.config, decoder.embed.weight.device
    seeds = generator.integers(2**63, size=draws).tolist()

    def draw(heads: int, stream: np.random.Generator) -> Tensor:
        gaussian_XDd = stream.standard_normal(size=(heads, c.d_model, c.head_dim), dtype=np.float32)
        return torch.from_numpy(gaussian_XDd).to(device).repeat_interleave(c.num_heads // heads, dim=0)

    def compute(at: slice) -> Part:
        stream = np.random.default_rng(seeds[at.start])
        factors = Factors(draw(c.num_heads, stream), draw(c.num_kv_heads, stream))
        return {"cosines": cosines(factors).double().cpu().numpy()}

    return np.stack([part["cosines"] for _, part in parts("drawing random heads", "layers", draws, 1, compute)])


def behind_gains(random_RHH: np.ndarray, decoder: Decoder, layer: int) -> dict[str, np.ndarray]:
    """The random heads' cosines as they would be behind this layer's norm, [R, H, H] for "qk" and "ov".

    The norm's gains and LayerNorm's centring are part of every head's circuits, so heads use fewer than D dimensions
    and are more alike than random heads drawn in D. A side whose covariance is C has (tr C)² / tr C² dimensions, and
    the cosines' standard deviation is 1 / √(product of both sides' dimensions); gains of 1 ± 0.3 make it 1.2/D. Heads
    of one key/value group share a side: the variance is then (1/d + 1/shared) / own, from both sides' dimensions and
    those of the d channels under q- and k-norm's gains. Random cosines are scaled by the ratio of the deviations.
    """
    c, w = decoder.config, decoder.head_weights(layer)
    width = c.d_model
    centring_DD = np.eye(width) - (1 / width if w.norm_bias_D is not None else 0)
    read_gain_D, out_gain_D = (
        np.ones(width) if gain_D is None else gain_D.detach().double().cpu().numpy()
        for gain_D in (w.norm_gain_D, w.out_gain_D)
    )

    def dimensions(root: np.ndarray) -> float:
        covariance = root @ root.T
        return float(np.trace(covariance) ** 2 / (covariance**2).sum())

    read, written = dimensions(centring_DD * read_gain_D), dimensions(centring_DD * out_gain_D)
    channels = float(c.head_dim)
    if w.q_gain_Hd is not None and w.k_gain_Gd is not None:
        gain_Hd = w.q_gain_Hd * w.k_gain_Gd.repeat_interleave(c.queries_per_group, dim=0)
        # Heads differ in their gains only where one norm is over all of them.
        channels = float(np.mean([dimensions(np.diag(gain_d)) for gain_d in gain_Hd.detach().double().cpu().numpy()]))
    group_H = np.arange(c.num_heads) // c.queries_per_group
    same_HH = group_H[:, None] == group_H
    scaled = {}
    flat = (1 / c.head_dim + 1 / width) / width
    for kind, shared, own, lanes in (("qk", read, read, channels), ("ov", read, written, c.head_dim)):
        in_group = (1 / lanes + 1 / shared) / own
        scale_HH = np.where(same_HH, np.sqrt(in_group / flat), width / np.sqrt(shared * own))
        np.fill_diagonal(scale_HH, 1)
        scaled[kind] = random_RHH * scale_HH
    return scaled


def rotated_heads(gram_HH: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Inner products of rotated heads, which have these heads' mean and covariance but no groups, [R, H, H].

    For heads drawn from one Gaussian, rotations that keep their mean change no probability, so that they are an exact
    null (Langsrud 2005; science.md §12). The mean is subtracted, since only distances are compared. Numbering the heads
    differently changes nothing.
    """
    heads = len(gram_HH)
    gram_HH = centred(gram_HH)
    order_H = np.argsort(np.diagonal(gram_HH), kind="stable")
    # QR's first column, the mean's direction, is dropped; the others span differences between heads.
    basis_HX = np.linalg.qr(np.column_stack((np.ones(heads), np.eye(heads)[:, 1:])))[0][:, 1:]
    inner_XX = basis_HX.T @ gram_HH[np.ix_(order_H, order_H)] @ basis_HX
    turn_RXX, corner_RXX = np.linalg.qr(generator.normal(size=(draws, heads - 1, heads - 1)))
    turn_RXX *= np.sign(np.diagonal(corner_RXX, axis1=1, axis2=2))[:, None]  # all rotations equally likely
    turned_RHX = basis_HX @ turn_RXX
    return turned_RHX @ inner_XX @ turned_RHX.swapaxes(-1, -2)


def random_directions(norm_H: np.ndarray, width: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Inner products of vectors of these norms whose directions in `width` dimensions are random, [R, H, H].

    Directions are those of Gaussian vectors, whose Gram matrix is drawn directly by Bartlett's decomposition. Draws go
    to the norms in order of size, so that numbering the heads differently changes nothing.
    """
    heads = len(norm_H)
    depth = min(heads, width)
    root_RHX = np.tril(generator.normal(size=(draws, heads, depth)), -1)
    across = np.arange(depth)
    root_RHX[:, across, across] = np.sqrt(generator.chisquare(width - across, size=(draws, depth)))
    root_RHX /= np.linalg.norm(root_RHX, axis=-1, keepdims=True)
    root_RHX = root_RHX[:, np.argsort(np.argsort(norm_H, kind="stable"))] * norm_H[:, None]
    return root_RHX @ root_RHX.swapaxes(-1, -2)
