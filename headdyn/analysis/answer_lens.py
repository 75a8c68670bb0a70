"""What an answer owes to each token of the prompt, each head and each MLP: TensorLens on comparisons (science.md §9).

Letters as in models/frozen.py and data/comparisons.py: P pairs, N rows of a group. K = 2 readouts of the same rows: the
pair's own answers, and the mean over all other pairs' answers, which is the null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from headdyn.analysis.answer_lens_figures import heads_figure, token_labels, tokens_figure
from headdyn.analysis.interventions.pair_rows import PairRows, Row, at_layers
from headdyn.analysis.interventions.patching import in_dtype
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.data.comparisons import PromptGroup, Prompts
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import Branch, Frozen, direct_shares, freeze, pull

PLACES = {"block": "common to both wordings", "wording": "rest of the prompt", "prefix": "of the answer"}
PARTS = ("embedding", "heads", "mlps", "biases")
_MOST_FLOATS = 2**26  # held of the prompts frozen at once, and about four times that while gradients are taken


@dataclass(frozen=True, kw_only=True)
class AnswerLens:
    """Δ = logit(right) − logit(wrong) where the answers first differ, taken apart exactly, on the bug pairs.

    Each prompt is frozen at itself (models/frozen.py). Δ is then a sum in two ways, in both beside the same part of the
    biases: over the input tokens, ⟨T_tjᵀ g, x_j⟩ with g the gradient of Δ at the last layer's output; and over what
    embedding, heads and MLPs write into the residual stream where Δ is read, ⟨g, write⟩. A head's `carried` share goes
    through later layers too, ⟨frozen gradient at z, z⟩; paths cross several heads, so those do not sum to anything.
    Where answers are compared over several tokens, only the first counts: later ones are not linear in one output.

    The null is the same prompt read for the answers of the other pairs (their mean): a head that writes for one-digit
    answers whatever the numbers are carries as much of those. Control pairs are no null: their right answer is the long
    one, so that the same head has the opposite sign there. `excess` rows are values less null; their p (sign flips),
    as all intervals (95 %, BCa), takes pairs as units, and q-values run over all of them.
    Raises ValueError for fewer than two bug pairs and for a model with an op that cannot be frozen.
    """

    wording: str = "corrupted"
    branch: str = "up"
    dtype: str = "float32"
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "answer_direct_nats": Metric(
            meaning="Δ written by a head for the output itself; null: other pairs' answers", unit="nats"
        ),
        "answer_direct_excess_nats": Metric(meaning="answer_direct_nats less its null", unit="nats"),
        "answer_carried_nats": Metric(
            meaning="Δ that runs through a head, to the output and through later layers; null: other pairs' answers",
            unit="nats",
        ),
        "answer_carried_excess_nats": Metric(meaning="answer_carried_nats less its null", unit="nats"),
        "layer_heads_answer_nats": Metric(meaning="answer_direct_nats of all heads of the layer", unit="nats"),
        "layer_mlp_answer_nats": Metric(meaning="Δ written by the layer's MLP for the output itself", unit="nats"),
        "answer_nats": Metric(meaning="mean Δ over bug pairs; null: of other pairs' answers", unit="nats"),
        "answer_embedding_nats": Metric(meaning="Δ that the last token's embedding holds by itself", unit="nats"),
        "answer_heads_nats": Metric(meaning="Δ that all heads write for the output itself", unit="nats"),
        "answer_mlps_nats": Metric(meaning="Δ that all MLPs write for the output itself", unit="nats"),
        "answer_biases_nats": Metric(meaning="Δ that biases add by any path, the final norm's too", unit="nats"),
        "answer_embedding_share": Metric(meaning="answer_embedding_nats over answer_nats"),
        "answer_heads_share": Metric(meaning="answer_heads_nats over answer_nats"),
        "answer_mlps_share": Metric(meaning="answer_mlps_nats over answer_nats"),
        "answer_biases_share": Metric(meaning="answer_biases_nats over answer_nats; the four sum to 1"),
        "answer_block_nats": Metric(
            meaning="Δ put there by tokens of the block common to both wordings, which holds the numbers", unit="nats"
        ),
        "answer_wording_nats": Metric(meaning="Δ put there by the prompt's other tokens", unit="nats"),
        "answer_prefix_nats": Metric(meaning="Δ put there by the answer's tokens before it is read", unit="nats"),
        "answer_lens_error": Metric(
            meaning="largest |tokens or parts + biases − Δ| over the largest |Δ|; null: gradient × input as tokens",
            low=0,
            high=1e-2,
        ),
    }

    def __post_init__(self) -> None:
        words = {"wording": ("clean", "corrupted"), "branch": ("up", "gate"), "dtype": ("float64", "float32")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"analysis.answer_lens.{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        for name, low in {"sign_flips": 999, "bootstrap_draws": 100}.items():
            if getattr(self, name) < low:
                raise ValueError(f"analysis.answer_lens.{name}={getattr(self, name)} must be at least {low}")

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Head, layer and model rows; a map of the heads, and the tokens of the prompts most alike."""
        bugs = corpus.where(corpus.is_bug_P)
        if len(bugs.pairs) < 2:
            raise ValueError(
                f"the prompts hold {len(bugs.pairs)} bug pairs, and the null of one pair's answers is other pairs' "
                "answers; set data.bug_pairs to 2 or more"
            )
        model = in_dtype(decoder, getattr(torch, self.dtype))
        directions = answer_directions(model, bugs)
        branch: Branch = "gate" if self.branch == "gate" else "up"
        clean = self.wording == "clean"
        lenses = [
            group_lens(model, group, group_directions, branch=branch, clean=clean)
            for group, group_directions in zip(bugs.groups, directions, strict=True)
        ]
        by_pair = {
            name: bugs.by_pair([lens[name] for lens in lenses])
            for name in ("answer", "direct", "carried", "mlps", "embedding", "biases", "places")
        }
        make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)
        heads = HeadTable.from_rows(_head_rows(make, by_pair)).with_q()
        taken = {place for group in bugs.groups for place in lens_tokens(group, clean=clean)[1].tolist()}
        others = [
            *_layer_rows(make, by_pair),
            *_part_rows(make, by_pair),
            *_place_rows(make, by_pair["places"], taken),
            _error_row(lenses, len(bugs.pairs)),
        ]
        figures = {"heads": heads_figure(heads), "tokens": _tokens(make, bugs, lenses, clean=clean)}
        return Findings(table=HeadTable.concat([heads, HeadTable.from_rows(others)]), figures=figures)


def answer_directions(decoder: Decoder, prompts: Prompts) -> list[Float[Tensor, "K N D"]]:
    """For each group the unembedding of right less wrong, each row's own, and the mean over all other pairs'."""
    unembed_VD = decoder.unembed.weight.detach()
    own = [
        unembed_VD[torch.from_numpy(group.right_NA[:, 0])] - unembed_VD[torch.from_numpy(group.wrong_NA[:, 0])]
        for group in prompts.groups
    ]
    mean_DP = torch.from_numpy(prompts.by_pair([part.T.double().cpu().numpy() for part in own]))
    other_PD = ((mean_DP.sum(1, keepdim=True) - mean_DP) / (len(prompts.pairs) - 1)).T.to(unembed_VD)
    return [
        torch.stack((part, other_PD[torch.from_numpy(group.units_N)]))
        for part, group in zip(own, prompts.groups, strict=True)
    ]


def lens_tokens(group: PromptGroup, *, clean: bool) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before the one where the answers differ, [N, T], and what each position is, an index into PLACES."""
    prompt_NT = group.clean_NT if clean else group.corrupted_NT
    start = group.span.source_start if clean else group.span.target_start
    place_T = np.full(prompt_NT.shape[1] + group.shared_NC.shape[1], _place("wording"))
    place_T[start : start + group.span.length] = _place("block")
    place_T[prompt_NT.shape[1] :] = _place("prefix")
    return np.concatenate((prompt_NT, group.shared_NC), axis=1), place_T


def _place(name: str) -> int:
    return list(PLACES).index(name)


def group_lens(
    decoder: Decoder, group: PromptGroup, direction_KND: Float[Tensor, "K N D"], *, branch: Branch, clean: bool
) -> dict[str, np.ndarray]:
    """Everything about one group's rows, in nats, rows on the last axis.

    `answer` [K, N], as the model itself gives it; `tokens` [K, T, N] and `places` [K, 3, N], its sums over PLACES;
    `direct` and `carried` [K, L, H, N]; `mlps` [K, L, N]; `embedding` and `biases` [K, N]; of the pair's own answers
    what the sums miss Δ by, `error` [N], and gradient × input in the tokens' place, `control` [N].
    """
    tokens_NT, place_T = lens_tokens(group, clean=clean)
    c, device = decoder.config, decoder.embed.weight.device
    row_floats = c.num_layers * tokens_NT.shape[1] * (c.num_heads * tokens_NT.shape[1] + c.d_ff + 2 * c.d_model)
    at_once = max(1, _MOST_FLOATS // row_floats)
    parts = [
        _lens(
            decoder, torch.from_numpy(tokens_NT[n : n + at_once]).to(device), direction_KND[:, n : n + at_once], branch
        )
        for n in range(0, len(tokens_NT), at_once)
    ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1).double().cpu().numpy() for name in parts[0]}
    found["places"] = np.stack([found["tokens"][:, place_T == place].sum(1) for place in range(len(PLACES))], axis=1)
    sums = [found["places"].sum(1), found["embedding"] + found["direct"].sum((1, 2)) + found["mlps"].sum(1)]
    found["error"] = np.max([np.abs(part + found["biases"] - found["answer"])[0] for part in sums], axis=0)
    found["control"] = np.abs(found.pop("gradient_times_input") - found["answer"][0])
    return found


def _lens(
    decoder: Decoder, tokens_NT: Int[Tensor, "N T"], direction_KND: Float[Tensor, "K N D"], branch: Branch
) -> dict[str, Tensor]:
    frozen = freeze(decoder, tokens_NT, branch=branch)
    answer_KN, gradient_times_input_N = _answers(frozen, tokens_NT, direction_KND)
    last = frozen.tail(tokens_NT.shape[1] - 1)  # Δ is read at the last position alone
    cotangent_KBTD = direction_KND.new_zeros(len(direction_KND), *frozen.residual[0].shape)
    cotangent_KBTD[:, :, -1:] = torch.stack([last.readout(part_ND[:, None]) for part_ND in direction_KND])
    pulled, z_LBTHd = pull(frozen, cotangent_KBTD)
    direct = direct_shares(frozen, cotangent_KBTD)
    norm_bias = frozen.decoder.norm.bias
    beside_KN = 0 if norm_bias is None else (direction_KND * norm_bias).sum(-1)
    return {
        "answer": answer_KN,
        "gradient_times_input": gradient_times_input_N,
        "tokens": pulled.token_shares(frozen).mT,
        "carried": (pulled.z_LKBTHd * z_LBTHd[:, None]).sum((3, 5)).permute(1, 0, 3, 2),
        "direct": direct.heads_LKBH.permute(1, 0, 3, 2),
        "mlps": direct.mlps_LKB.transpose(0, 1),
        "embedding": direct.embedding_KB,
        "biases": (direct.biases_KB + beside_KN).detach(),
    }


def _answers(
    frozen: Frozen, tokens_NT: Tensor, direction_KND: Tensor
) -> tuple[Float[Tensor, "K N"], Float[Tensor, " N"]]:
    """Δ of both readouts as the model itself has it, and Σ_j ⟨∂Δ/∂x_j, x_j⟩: the Jacobian in the tensor's place."""
    decoder, last = frozen.decoder, len(frozen.layers) - 1
    x_NTD = frozen.residual[0].detach().requires_grad_()
    with torch.enable_grad():
        trace = decoder.trace(tokens_NT, start=(0, x_NTD), sites=("resid_post",), layers=(last,), logits=None)
        answer_KN = (decoder.norm(trace["resid_post", last][:, -1]) * direction_KND).sum(-1)
        (gradient_NTD,) = torch.autograd.grad(answer_KN[0].sum(), x_NTD)
    return answer_KN.detach(), (gradient_NTD * x_NTD).sum((1, 2)).detach()


def _head_rows(make: PairRows, by_pair: Mapping[str, np.ndarray]) -> list[Row]:
    rows = []
    for kind in ("direct", "carried"):
        own_PX, other_PX = (part_LHP.reshape(-1, part_LHP.shape[-1]).T for part_LHP in by_pair[kind])
        num_heads = by_pair[kind].shape[2]
        for group in (
            make.means(f"answer_{kind}_nats", own_PX, other_PX),
            make.effects(f"answer_{kind}_excess_nats", own_PX - other_PX),
        ):
            rows += [{**row, "layer": i // num_heads, "head": i % num_heads} for i, row in enumerate(group)]
    return rows


def _layer_rows(make: PairRows, by_pair: Mapping[str, np.ndarray]) -> list[Row]:
    rows = []
    for name, (own_LP, other_LP) in (("heads", by_pair["direct"].sum(2)), ("mlp", by_pair["mlps"])):
        group = make.means(f"layer_{name}_answer_nats", own_LP.T, other_LP.T)
        rows += at_layers({layer: [row] for layer, row in enumerate(group)})
    return rows


def _part_rows(make: PairRows, by_pair: Mapping[str, np.ndarray]) -> list[Row]:
    parts = {**by_pair, "heads": by_pair["direct"].sum((1, 2)), "mlps": by_pair["mlps"].sum(1)}
    rows = make.means("answer_nats", *(part_P[:, None] for part_P in parts["answer"]))
    for name in PARTS:
        rows += make.means(f"answer_{name}_nats", *(part_P[:, None] for part_P in parts[name]))
    shares = make.shares("share", np.stack([parts[name][0] for name in PARTS]), parts["answer"][0], "Δ is")
    return rows + [{**row, "metric": f"answer_{name}_share"} for name, row in zip(PARTS, shares, strict=True)]


def _place_rows(make: PairRows, places_KXP: np.ndarray, taken: set[int]) -> list[Row]:
    rows: list[Row] = []
    for place, name in enumerate(PLACES):
        own_P, other_P = places_KXP[:, place]
        if place in taken:
            rows += make.means(f"answer_{name}_nats", own_P[:, None], other_P[:, None])
        else:
            absent = {"metric": f"answer_{name}_nats", "reason": "the prompts have no such tokens"}
            rows.append({**absent, "n": len(own_P), "unit": "pair"})
    return rows


def _error_row(lenses: list[dict[str, np.ndarray]], pairs: int) -> Row:
    row: Row = {"metric": "answer_lens_error", "n": pairs, "unit": "pair"}
    largest = max(np.abs(lens["answer"][0]).max() for lens in lenses)
    if not largest:
        return {**row, "reason": "Δ is 0 for every prompt"}
    error, control = (float(max(lens[name].max() for lens in lenses) / largest) for name in ("error", "control"))
    return {**row, "value": error, "null": control}


def _tokens(make: PairRows, prompts: Prompts, lenses: list[dict[str, np.ndarray]], *, clean: bool) -> Figure:
    """The picture of the prompts that are most alike: of one format, with the numbers in one order."""
    cells = []
    for group, lens in zip(prompts.groups, lenses, strict=True):
        first_N = right_first(prompts, group, clean=clean)
        for is_first, rows_N in ((True, first_N), (False, ~first_N)):
            cells.append((group.rows(rows_N), lens["tokens"][..., rows_N], is_first))
    group, token_KTN, is_first = max(cells, key=lambda cell: len(cell[0]))
    tokens_NT, place_T = lens_tokens(group, clean=clean)
    return tokens_figure(
        token_rows(make, group, token_KTN),
        token_labels(tokens_NT, prompts.decode),
        [list(PLACES.values())[place] for place in place_T],
        f"format {group.format}, the right number {'first' if is_first else 'last'}",
    )


def right_first(prompts: Prompts, group: PromptGroup, *, clean: bool) -> np.ndarray:
    """Which rows name the right number before the wrong one, [N]."""
    texts = [prompts.decode(row.tolist()) for row in (group.clean_NT if clean else group.corrupted_NT)]
    pairs = [prompts.pairs[unit] for unit in group.units_N]
    return np.array([text.index(pair.right) < text.index(pair.wrong) for text, pair in zip(texts, pairs, strict=True)])


def token_rows(make: PairRows, group: PromptGroup, token_KTN: np.ndarray) -> list[Row]:
    """What the token at each position puts into Δ, mean over the pairs of these rows."""
    pairs, pair_N = np.unique(group.units_N, return_inverse=True)
    share_NP = (pair_N[:, None] == np.arange(len(pairs))) / np.bincount(pair_N)
    return make.means("tokens", *((token_TN @ share_NP).T for token_TN in token_KTN))
