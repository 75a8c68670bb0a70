"""Heads as points: inner products between the heads of a layer, and between random heads (science.md §8 and §12).

Letters as in models/decoder.py; R draws. Circuits are compared, which no change of basis inside a head
touches; what the seed study compared instead is in seed_weights.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headdyn.analysis.circuits import Factors, cosines, folded
from headdyn.analysis.clusters.clusterings import centred
from headdyn.models.decoder import Decoder

CIRCUITS = ("qk", "ov")


def circuit_cosines(decoder: Decoder, layer: int) -> dict[str, np.ndarray]:
    """Cosines between the layer's heads, [H, H] for "qk" and "ov": heads as unit vectors, whatever their norm."""
    return {name: cosines(factors).cpu().numpy() for name, factors in folded(decoder, layer).items()}


def random_circuit_cosines(decoder: Decoder, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Cosines between the heads of one layer drawn at random, of the model's shape and grouping, [R, H, H].

    They serve both circuits: QK shares keys within a group and OV values, on either side of the same product. Cosines
    are free of norm, and their law hardly depends on the spectra: the standard deviation is 1/D for any (D 64, d 8:
    0.0157 with flat singular values, 0.0156 with a tenfold decay). Drawn in float32, which moves none by 1e-6.
    """
    c, device = decoder.config, decoder.embed.weight.device

    def draw(heads: int) -> Tensor:
        drawn_XDd = generator.standard_normal(size=(heads, c.d_model, c.head_dim), dtype=np.float32)
        return torch.from_numpy(drawn_XDd).to(device).repeat_interleave(c.num_heads // heads, dim=0)

    circuits = (Factors(draw(c.num_heads), draw(c.num_kv_heads)) for _ in range(draws))
    return np.stack([cosines(factors).double().cpu().numpy() for factors in circuits])


def random_directions(norm_H: np.ndarray, width: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Inner products of vectors of these norms whose directions in `width` dimensions are random, [R, H, H].

    Directions are those of Gaussian vectors: their Gram matrix is drawn by Bartlett's decomposition, not the vectors
    themselves. The draws go to the norms in order of size, so that numbering the heads differently changes nothing.
    """
    heads = len(norm_H)
    depth = min(heads, width)
    root_RHX = np.tril(generator.normal(size=(draws, heads, depth)), -1)
    across = np.arange(depth)
    root_RHX[:, across, across] = np.sqrt(generator.chisquare(width - across, size=(draws, depth)))
    root_RHX /= np.linalg.norm(root_RHX, axis=-1, keepdims=True)
    root_RHX = root_RHX[:, np.argsort(np.argsort(norm_H, kind="stable"))] * norm_H[:, None]
    return root_RHX @ root_RHX.swapaxes(-1, -2)


def one_cloud(gram_HH: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Inner products of H points without groups whose principal variances are exactly these heads', [R, H, H].

    The points' scores are turned by a random rotation that leaves the mean where it is (a rotation test, Langsrud
    2005): for heads drawn from one Gaussian, whatever its covariance and dimension, turned heads are as likely as the
    heads themselves, so a rank among them is an exact p.
    """
    heads = len(gram_HH)
    variance_X = np.maximum(np.linalg.eigvalsh(centred(gram_HH))[1:], 0)
    # Gaussian columns, less their mean, made orthonormal
    noise_RHX = generator.normal(size=(draws, heads, heads - 1))
    turned_RHX = np.linalg.qr(noise_RHX - noise_RHX.mean(1, keepdims=True)).Q
    return (turned_RHX * variance_X) @ turned_RHX.swapaxes(-1, -2)
