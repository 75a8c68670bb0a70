"""The whole model's effective attention by TensorLens, beside raw attention and attention rollout (science.md §9).

Letters as in models/frozen.py; N evaluation sequences, K targets, J attentions by position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from headdyn.analysis.pattern_sums import position_profiles
from headdyn.analysis.selectivity import Estimate, balanced_swaps, check_swaps, estimate, topic_contrast, units
from headdyn.analysis.tensorlens_figures import heads_figure, instruments_figure, layers_figure, maps_figure
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import Branch, Frozen, contributions, freeze, head_flow, head_values, pull

INSTRUMENTS = ("raw", "rollout", "tensorlens")
_UNDEFINED = "no token is read from any other"
_MASKED = "attention stays inside documents, each of one topic"


@dataclass(frozen=True, kw_only=True)
class TensorLens:
    """Topic selectivity of what tokens do to tokens through the whole model, on `sequences` of the validation split.

    Three maps from tokens to tokens, rows summing to 1, each up to every layer and of the model (science.md §6's
    selectivity, label-swap null and control variates; 0 is the null of every selectivity):
    `tensorlens` ‖T_ij x_j‖ over its row's sum, where Σ_j T_ij x_j is exactly what the model makes of its input x, the
    biases' part apart; `rollout` the product of ½ (mean attention of a layer's heads) + ½ (identity), Abnar & Zuidema
    2020; `raw` the mean attention of heads (a layer's own rows are that layer's heads', the model's are all heads').
    The first two hold the residual stream, and raw attention does not: compare them without the self key, as the two
    differences between instruments do, sequence by sequence.

    In nats, from `targets` tokens of each sequence: what keys of the query's topic put into the next token's logit
    (less the mean logit), beyond the label-swap null; of the whole model, and of each head's read. These gradients of
    the frozen map are exact shares: over the input tokens, with the biases' part, they sum to the logit. Heads' shares
    do not sum to it, since paths cross several heads. A head also writes to logits of tokens that do not follow, so the
    null of `head_logit_nats` is what it writes at the same place to the tokens that the `label_swaps` other sequences
    have next. Intervals (95 %, BCa) and p (sign flips) take sequences as units.

    Where the corpus confines attention to documents, topic figures are absent. `check` refuses a validation split of
    too few sequences. Raises ValueError for a model with an op that cannot be frozen.
    """

    branch: str = "up"
    sequences: int = 48
    tokens: int = 256
    targets: int = 8
    label_swaps: int = 20
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "tensorlens_selectivity": Metric(
            meaning="‖T_ij x_j‖ on keys of the query's topic, share of the row, less its label-swap null",
            low=-1,
            high=1,
        ),
        "tensorlens_selectivity_no_self": Metric(
            meaning="the same as a share of what is not on the query itself", low=-1, high=1
        ),
        "tensorlens_aligned_selectivity": Metric(
            meaning="selectivity of ⟨T_ij x_j, y_i⟩/‖y_i‖², signed shares of the output that sum to 1 with the biases'"
        ),
        "rollout_selectivity": Metric(meaning="selectivity of attention rollout", low=-1, high=1),
        "rollout_selectivity_no_self": Metric(
            meaning="the same as a share of what is not on the query itself", low=-1, high=1
        ),
        "raw_selectivity": Metric(meaning="selectivity of the heads' mean attention", low=-1, high=1),
        "raw_selectivity_no_self": Metric(
            meaning="the same as a share of what is not on the query itself", low=-1, high=1
        ),
        "tensorlens_less_raw_no_self": Metric(
            meaning="tensorlens_selectivity_no_self less raw_selectivity_no_self, on the same sequences",
            low=-2,
            high=2,
        ),
        "tensorlens_less_rollout_no_self": Metric(
            meaning="tensorlens_selectivity_no_self less rollout_selectivity_no_self, on the same sequences",
            low=-2,
            high=2,
        ),
        "head_written_selectivity": Metric(
            meaning="selectivity of ‖A_ij a_j M_h x_j‖: attention by how much is written for it", low=-1, high=1
        ),
        "tensorlens_self": Metric(meaning="‖T_ii x_i‖ over its row's sum, mean over queries", low=0, high=1),
        "tensorlens_topic_nats": Metric(
            meaning="next token's logit put there by input tokens of the query's topic, beyond label swap", unit="nats"
        ),
        "head_topic_nats": Metric(
            meaning="next token's logit carried by a head from keys of the query's topic, beyond label swap",
            unit="nats",
        ),
        "head_logit_nats": Metric(
            meaning="next token's logit carried by a head, ⟨frozen gradient at z, z⟩; null: of other sequences' tokens",
            unit="nats",
        ),
        "head_logit_excess_nats": Metric(
            meaning="head_logit_nats less its null: what a head writes for the token that follows here", unit="nats"
        ),
        "tensorlens_error": Metric(
            meaning="|Σ T_ij x_j + c_i − y_i| over largest |y_i|, largest of all sequences; null: the Jacobian as T",
            low=0,
            high=1e-3,
        ),
    }

    def __post_init__(self) -> None:
        if self.branch not in ("up", "gate"):
            raise ValueError(f"analysis.tensorlens.branch={self.branch!r} must be up or gate")
        if self.label_swaps < 20:
            raise ValueError(
                f"analysis.tensorlens.label_swaps={self.label_swaps} is too few for a null; set 20 or more"
            )
        if self.sequences <= self.label_swaps:
            raise ValueError(
                f"analysis.tensorlens.sequences={self.sequences} must exceed label_swaps={self.label_swaps}: "
                "each sequence is held against the labels of that many others"
            )
        for name, least in (("tokens", 8), ("targets", 1), ("sign_flips", 9_999), ("bootstrap_draws", 100)):
            if getattr(self, name) < least:
                raise ValueError(f"analysis.tensorlens.{name}={getattr(self, name)} must be at least {least}")

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the corpus has too few validation sequences for the label-swap null."""
        check_swaps("tensorlens", self.label_swaps, corpus)

    def __call__(self, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
        """Layer and model rows of the three maps, head rows of what is written and carried; four figures."""
        self.check(corpus)
        val = corpus.val
        count = min(self.sequences, len(val))
        chosen = generator.choice(len(val), count, replace=False)
        swaps_NR = balanced_swaps(count, self.label_swaps, generator)
        tokens_NT, topics_NT = (
            torch.from_numpy(array[chosen, : self.tokens].astype(np.int64)) for array in (val.tokens_NT, val.topics_NT)
        )
        documents_NT = None
        if corpus.mask_documents:
            assert val.documents_NT is not None
            documents_NT = torch.from_numpy(val.documents_NT[chosen, : self.tokens].astype(np.int64))
        device = decoder.embed.weight.device
        tokens_NT, documents_NT = tokens_NT.to(device), None if documents_NT is None else documents_NT.to(device)
        length = tokens_NT.shape[1]
        # The same for every sequence, so that balanced swaps make attention by position alone come to 0 here too.
        targets_K = torch.linspace(0, length - 2, self.targets + 1).round().long()[1:].unique().to(device)
        sums = _Sums(length)
        for n in range(count):
            documents_BT = None if documents_NT is None else documents_NT[n : n + 1]
            contrast_QK = topic_contrast(topics_NT[n], topics_NT[swaps_NR[n]], corpus.num_topics).to(device)
            branch: Branch = "gate" if self.branch == "gate" else "up"
            frozen = freeze(decoder, tokens_NT[n : n + 1], branch=branch, documents_BT=documents_BT)
            sums.keep("jacobian_error", _jacobian_error(frozen, documents_BT))
            shares = logit_shares(frozen, tokens_NT[n], tokens_NT[swaps_NR[n]], contrast_QK, targets_K)
            for name, share in shares.items():
                sums.keep(name, share)
            sums.add(frozen, contrast_QK, targets_K, topics_NT[n])
        table = self._table(sums, generator)
        if corpus.mask_documents:
            table = _without_topics(table)
        table = table.with_q()
        figures = {
            "instruments": instruments_figure(table),
            "layers": layers_figure(table),
            "heads": heads_figure(table),
            "maps": maps_figure(*sums.shown),
        }
        return Findings(table=table, figures=figures)

    def _table(self, sums: _Sums, generator: np.random.Generator) -> HeadTable:
        draws: dict[str, Any] = {"sign_flips": self.sign_flips, "bootstrap_draws": self.bootstrap_draws}
        profiles_NJ, targeted_NJ = sums.stacked("profiles"), sums.stacked("targeted_profiles")
        count = len(profiles_NJ)
        common: dict[str, Any] = {"n": count, "unit": "sequence", "reason": _UNDEFINED}
        parts: list[HeadTable] = []
        model_N: dict[str, np.ndarray] = {}  # each instrument's selectivity of the model without the self key
        for name in INSTRUMENTS:
            topical_NL, own_NL = sums.stacked(f"{name}_topical"), sums.stacked(f"{name}_self")
            if name == "raw":  # the model's raw attention is the mean over all layers
                topical_NL, own_NL = _with_mean(topical_NL), _with_mean(own_NL)
            else:
                topical_NL, own_NL = _with_last(topical_NL), _with_last(own_NL)
            for suffix, read_NL in (("", np.ones_like(own_NL)), ("_no_self", 1 - own_NL)):
                found = estimate(topical_NL, read_NL, generator, controls_NJ=profiles_NJ, **draws)
                parts += _layers_and_whole(f"{name}_selectivity{suffix}", found, common)
            if name == "tensorlens":
                low, high = bootstrap_interval(own_NL, generator, draws=self.bootstrap_draws)
                parts += _layers_and_whole(
                    "tensorlens_self",
                    Estimate(own_NL.mean(0), low, high, np.full_like(low, np.nan)),
                    common,
                    null=np.nan,
                )
            model_N[name] = units(topical_NL[:, -1], 1 - own_NL[:, -1])
        for name in ("raw", "rollout"):
            difference_N = model_N["tensorlens"] - model_N[name]
            found = estimate(difference_N, 1, generator, controls_NJ=profiles_NJ, **draws)
            parts.append(_whole(f"tensorlens_less_{name}_no_self", found, common))
        carried_NLH, swapped_NLH = sums.stacked("head_logit_nats"), sums.stacked("head_swapped_nats")
        low, high = bootstrap_interval(carried_NLH, generator, draws=self.bootstrap_draws)
        columns = {"ci_low": low, "ci_high": high, "null": swapped_NLH.mean(0)}
        parts.append(HeadTable.per_head("head_logit_nats", carried_NLH.mean(0), **columns, **common))
        for name, share_NLH, controls_NJ in (
            ("head_written_selectivity", sums.stacked("head_written_selectivity"), profiles_NJ),
            ("head_topic_nats", sums.stacked("head_topic_nats"), targeted_NJ),
            ("head_logit_excess_nats", carried_NLH - swapped_NLH, None),
        ):
            found = estimate(share_NLH, 1, generator, controls_NJ=controls_NJ, **draws)
            columns = {"ci_low": found.low, "ci_high": found.high, "p": found.p, "null": 0.0}
            parts.append(HeadTable.per_head(name, found.value, **columns, **common))
        for name, controls_NJ in (
            ("tensorlens_aligned_selectivity", profiles_NJ),
            ("tensorlens_topic_nats", targeted_NJ),
        ):
            found = estimate(sums.stacked(name), 1, generator, controls_NJ=controls_NJ, **draws)
            parts.append(_whole(name, found, common))
        error, jacobian_error = (float(sums.stacked(name).max()) for name in ("error", "jacobian_error"))
        parts.append(HeadTable.whole("tensorlens_error", error, null=jacobian_error, n=count, unit="sequence"))
        return HeadTable.concat(parts)


@dataclass
class _Sums:
    """Per-sequence means over queries, by name; a list with an array for each sequence."""

    length: int
    by_name: dict[str, list[np.ndarray]] = field(default_factory=dict)
    shown: tuple[dict[str, np.ndarray], np.ndarray] = ({}, np.empty(0))  # one sequence's maps, and its topics

    def stacked(self, name: str) -> np.ndarray:
        """[N, ...] in float64."""
        return np.stack(self.by_name[name])

    def add(self, frozen: Frozen, contrast_QK: Tensor, targets_K: Tensor, topics_T: Tensor) -> None:
        """What one sequence's maps contribute."""
        raw_LQK = torch.stack([layer.pattern_BHQK[0].mean(0) for layer in frozen.layers])
        flow_LQK, aligned_QK, error = flow_maps(frozen)
        maps = {"raw": raw_LQK, "rollout": rollout(raw_LQK), "tensorlens": flow_LQK}
        for name, map_LQK in maps.items():
            self.keep(f"{name}_topical", (map_LQK * contrast_QK).sum((-1, -2)) / self.length)
            self.keep(f"{name}_self", map_LQK.diagonal(dim1=-2, dim2=-1).mean(-1))
        self.keep("tensorlens_aligned_selectivity", (aligned_QK * contrast_QK).sum() / self.length)
        written_LHQK = torch.stack([_normalised(head_flow(frozen, layer)[0]) for layer in range(len(frozen.layers))])
        self.keep("head_written_selectivity", (written_LHQK * contrast_QK).sum((-1, -2)) / self.length)
        profiles_JQK = position_profiles(self.length).to(contrast_QK.device) * contrast_QK
        self.keep("profiles", profiles_JQK.sum((-1, -2)) / self.length)
        self.keep("targeted_profiles", profiles_JQK[:, targets_K].sum(-1).mean(-1))
        self.keep("error", error)
        changes, most = (int((np.diff(topics.astype(int)) != 0).sum()) for topics in (topics_T.numpy(), self.shown[1]))
        if changes > most or not self.shown[0]:  # the sequence that changes topic most often
            drawn = {"raw": raw_LQK.mean(0), "rollout": maps["rollout"][-1], "tensorlens": flow_LQK[-1]}
            self.shown = {name: map_QK.cpu().numpy() for name, map_QK in drawn.items()}, topics_T.numpy()

    def keep(self, name: str, value: Tensor) -> None:
        """What one more sequence has under this name."""
        self.by_name.setdefault(name, []).append(value.double().cpu().numpy())


def rollout(mean_LQK: Float[Tensor, "L Q K"]) -> Float[Tensor, "L Q K"]:
    """Attention rollout up to every layer, from the mean attention of each layer's heads (Abnar & Zuidema 2020)."""
    mixed_LQK = (mean_LQK + torch.eye(mean_LQK.shape[-1], dtype=mean_LQK.dtype, device=mean_LQK.device)) / 2
    found = [mixed_LQK[0]]
    for layer_QK in mixed_LQK[1:]:
        found.append(layer_QK @ found[-1])
    return torch.stack(found)


@torch.no_grad()
def flow_maps(frozen: Frozen) -> tuple[Float[Tensor, "L I J"], Float[Tensor, "I J"], Float[Tensor, ""]]:
    """‖T_ij x_j‖ up to every layer over its row's sum; ⟨T_ij x_j, y_i⟩/‖y_i‖² of the model, whose rows sum to 1 less
    the biases' share; and the relative error of Σ_j T_ij x_j + c_i against y_i."""
    x_BTD, y_ID = frozen.residual[0], frozen.residual[-1][0]
    length = x_BTD.shape[1]
    norms_LJI = x_BTD.new_zeros(len(frozen.layers), length, length)
    aligned_JI = x_BTD.new_zeros(length, length)
    total_ID = frozen.affine()[0].clone()
    for start, states in contributions(frozen):
        stop = start + len(states[0])
        for layer, state_JID in enumerate(states):
            norms_LJI[layer, start:stop, start:] = state_JID.norm(dim=-1)
        aligned_JI[start:stop, start:] = torch.einsum("jid,id->ji", states[-1], y_ID[start:])
        total_ID[start:] += states[-1].sum(0)
    aligned_IJ = aligned_JI.mT / y_ID.square().sum(-1, keepdim=True)
    return _normalised(norms_LJI.mT), aligned_IJ, (total_ID - y_ID).abs().max() / y_ID.abs().max()


def logit_shares(
    frozen: Frozen,
    tokens_T: Int[Tensor, " T"],
    swapped_RT: Int[Tensor, "R T"],
    contrast_QK: Float[Tensor, "Q K"],
    targets_K: Int[Tensor, " targets"],
) -> dict[str, Tensor]:
    """Means over targets of what the next token's logit owes, in nats, from one gradient of the frozen map a target.

    `head_logit_nats` [L, H]; `head_swapped_nats` [L, H] the same of the tokens that R other sequences have in the next
    one's place, their mean; `head_topic_nats` [L, H] and `tensorlens_topic_nats` [] weighted by the topic contrast of
    target and key.
    """
    following_TD = frozen.unembedding(tokens_T.roll(-1)[None])[0]  # the last one is no target
    swapped_TD = frozen.unembedding(swapped_RT.roll(-1, dims=1)).mean(0)
    targets, (length, width) = len(targets_K), following_TD.shape
    cotangent_KBTD = following_TD.new_zeros(targets + 1, 1, length, width)
    cotangent_KBTD[torch.arange(targets), 0, targets_K] = following_TD[targets_K]
    cotangent_KBTD[targets, 0, targets_K] = swapped_TD[targets_K]  # gradients are linear: one does for all targets
    pulled, z_LBTHd = pull(frozen, cotangent_KBTD)
    carried_LKH = (pulled.z_LKBTHd * z_LBTHd[:, None]).sum((2, 3, 5))
    contrast_KJ = contrast_QK[targets_K]
    topical_LH = []
    for layer, frozen_layer in enumerate(frozen.layers):
        read_KHJd = torch.einsum("hqj,kqhd->khjd", frozen_layer.pattern_BHQK[0], pulled.z_LKBTHd[layer, :targets, 0])
        share_KHJ = (read_KHJd * head_values(frozen, layer)[0].transpose(0, 1)).sum(-1)
        topical_LH.append((share_KHJ * contrast_KJ[:, None]).sum((0, 2)) / targets)
    return {
        "head_logit_nats": carried_LKH[:, :targets].mean(1),
        "head_swapped_nats": carried_LKH[:, targets] / targets,
        "head_topic_nats": torch.stack(topical_LH),
        "tensorlens_topic_nats": (pulled.token_shares(frozen)[:targets, 0] * contrast_KJ).sum() / targets,
    }


def _jacobian_error(frozen: Frozen, documents_BT: Tensor | None) -> Float[Tensor, ""]:
    """The error that `flow_maps` states, with the model's Jacobian at x in T's place: what freezing is for."""
    decoder, last = frozen.decoder, len(frozen.layers) - 1

    def model(x_BTD: Tensor) -> Tensor:
        trace = decoder.trace(
            torch.zeros(x_BTD.shape[:2], dtype=torch.long, device=x_BTD.device),
            start=(0, x_BTD),
            sites=("pattern", "resid_post"),  # patterns formed in the open: the fused kernel has no forward derivative
            logits=None,
            documents_BT=documents_BT,
        )
        return trace["resid_post", last]

    x_BTD, y_BTD = frozen.residual[0], frozen.residual[-1]
    with torch.no_grad(), forward_ad.dual_level():
        moved_BTD = forward_ad.unpack_dual(model(forward_ad.make_dual(x_BTD, x_BTD))).tangent
    return (moved_BTD - y_BTD).abs().max() / y_BTD.abs().max()


def _normalised(norm_XQK: Tensor) -> Tensor:
    """Rows over their sums; a row without any weight stays 0."""
    total_XQ1 = norm_XQK.sum(-1, keepdim=True)
    return norm_XQK / total_XQ1.where(total_XQ1 > 0, 1)


def _with_last(values_NL: np.ndarray) -> np.ndarray:
    return np.concatenate((values_NL, values_NL[:, -1:]), axis=1)


def _with_mean(values_NL: np.ndarray) -> np.ndarray:
    return np.concatenate((values_NL, values_NL.mean(1, keepdims=True)), axis=1)


def _layers_and_whole(name: str, found: Estimate, common: Mapping[str, Any], null: float = 0.0) -> Iterable[HeadTable]:
    """Rows of the layers, and of the model from the last column."""
    layers = {"ci_low": found.low[:-1], "ci_high": found.high[:-1], "p": found.p[:-1], "null": null}
    last = Estimate(found.value[-1], found.low[-1], found.high[-1], found.p[-1])
    return [HeadTable.per_layer(name, found.value[:-1], **layers, **common), _whole(name, last, common, null)]


def _whole(name: str, found: Estimate, common: Mapping[str, Any], null: float = 0.0) -> HeadTable:
    columns = {"ci_low": float(found.low), "ci_high": float(found.high), "p": float(found.p), "null": null}
    return HeadTable.whole(name, float(found.value), **columns, **common)


def _without_topics(table: HeadTable) -> HeadTable:
    """The table with every topic figure absent: a mask, not the model, keeps attention inside one topic."""
    keep = ("metric", "layer", "head", "n", "unit")
    rows = []
    for row in table.rows():
        topical = any(word in row["metric"] for word in ("selectivity", "topic", "_less_"))
        rows.append({name: row[name] for name in keep} | {"reason": _MASKED} if topical else row)
    return HeadTable.from_rows(rows)
