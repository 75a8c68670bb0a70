"""Rows of what tokens, heads and MLPs add to answers, from the model frozen at each prompt (science.md §9).

Letters as in models/frozen.py and data/prompts.py: P pairs, N rows of a group. K = 2 readouts of the same rows: the
pair's own answers, and the mean over all other pairs' answers, which is the null.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.analysis.answer_lens import PARTS, PLACES, AnswerLens
from headdyn.analysis.figure_parts import drawable, head_panel, interval
from headdyn.analysis.interventions.pair_rows import PairRows
from headdyn.analysis.interventions.patching import in_dtype
from headdyn.core.figures import Figure, head_map, interval_plot
from headdyn.core.kept_parts import parts
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import sign_flip_test
from headdyn.data.prompts import PromptGroup, Prompts
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import Branch, Frozen, direct_shares, freeze, pull

_PLACES = list(PLACES)  # the place of a position is stored as an index into this list
_MOST_FLOATS = 2**26  # in the frozen passes of one batch of prompts; gradients need about four times as many


def measure(settings: AnswerLens, decoder: Decoder, prompts: Prompts, generator: np.random.Generator) -> Findings:
    """Head, layer and model rows; a figure of heads, and one of tokens for the largest set of like prompts."""
    bugs = prompts.where(prompts.is_bug_P)
    if len(bugs.pairs) < 2:
        raise ValueError(
            f"the prompts hold {len(bugs.pairs)} bug pairs, and the null of one pair's answers is other pairs' "
            "answers; set data.bug_pairs to 2 or more"
        )
    model, clean = in_dtype(decoder, settings.dtype), settings.wording == "clean"
    lenses = [
        group_lens(model, group, direction_KND, branch=settings.branch, clean=clean)
        for group, direction_KND in zip(bugs.groups, answer_directions(model, bugs), strict=True)
    ]
    names = ("answer", "direct", "carried", "mlps", "embedding", "biases", "places")
    by_pair = {name: bugs.by_pair([lens[name] for lens in lenses]) for name in names}
    pair_rows = PairRows(generator=generator, bootstrap_draws=settings.bootstrap_draws, sign_flips=settings.sign_flips)
    present = {place for group in bugs.groups for place in lens_tokens(group, clean=clean)[1].tolist()}
    table = HeadTable.concat([_table(pair_rows, by_pair, present), _error_row(lenses, len(bugs.pairs))]).with_q()
    figures = {"heads": heads_figure(table), "tokens": _tokens(pair_rows, bugs, lenses, clean=clean)}
    return Findings(table=table, figures=figures)


def answer_directions(decoder: Decoder, prompts: Prompts) -> list[Float[Tensor, "K N D"]]:
    """For each group, unembeddings of right less wrong answers: the row's own pair's, then the other pairs' mean."""
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
    """The tokens before the one where answers differ, [N, T], and each position's place, as an index into PLACES."""
    prompt_NT = group.clean_NT if clean else group.corrupted_NT
    start = group.span.source_start if clean else group.span.target_start
    place_T = np.full(prompt_NT.shape[1] + group.shared_NC.shape[1], _PLACES.index("wording"))
    place_T[start : start + group.span.length] = _PLACES.index("block")
    place_T[prompt_NT.shape[1] :] = _PLACES.index("prefix")
    return np.concatenate((prompt_NT, group.shared_NC), axis=1), place_T


def group_lens(
    decoder: Decoder, group: PromptGroup, direction_KND: Float[Tensor, "K N D"], *, branch: Branch, clean: bool
) -> dict[str, np.ndarray]:
    """Δ of one group's rows and the terms of its two sums, in nats, by name; rows are the last axis.

    `answer` [K, N] is Δ as the model itself gives it. By token: `tokens` [K, T, N], and `places` [K, 3, N], their sums
    over PLACES. By part: `direct` [K, L, H, N], `mlps` [K, L, N], `embedding` [K, N]. `biases` [K, N] belong to both
    sums, `carried` [K, L, H, N] to neither. `error` [N] is the larger error of the two sums against the pair's own Δ,
    and `control` [N] the error of gradient × input in place of the tokens' terms.
    """
    tokens_NT, place_T = lens_tokens(group, clean=clean)
    c, device = decoder.config, decoder.embed.weight.device
    row_floats = c.num_layers * tokens_NT.shape[1] * (c.num_heads * tokens_NT.shape[1] + c.d_ff + 2 * c.d_model)
    at_once = max(1, _MOST_FLOATS // row_floats)

    def compute(rows: slice) -> dict[str, np.ndarray]:
        shares = _lens(decoder, torch.from_numpy(tokens_NT[rows]).to(device), direction_KND[:, rows], branch)
        return {name: value.double().cpu().numpy() for name, value in shares.items()}

    inputs = [tokens_NT, direction_KND.double().cpu().numpy()]
    done = [part for _, part in parts("taking answers apart", "prompts", len(tokens_NT), at_once, compute, inputs)]
    lens = {name: np.concatenate([part[name] for part in done], axis=-1) for name in done[0]}
    lens["places"] = np.stack([lens["tokens"][:, place_T == place].sum(1) for place in range(len(PLACES))], axis=1)
    sums = [lens["places"].sum(1), lens["embedding"] + lens["direct"].sum((1, 2)) + lens["mlps"].sum(1)]
    lens["error"] = np.max([np.abs(part + lens["biases"] - lens["answer"])[0] for part in sums], axis=0)
    lens["control"] = np.abs(lens.pop("gradient_times_input") - lens["answer"][0])
    return lens


def _lens(
    decoder: Decoder, tokens_NT: Int[Tensor, "N T"], direction_KND: Float[Tensor, "K N D"], branch: Branch
) -> dict[str, Tensor]:
    """The terms of rows that are frozen together, by the names of `group_lens`, and `gradient_times_input`."""
    frozen = freeze(decoder, tokens_NT, branch=branch)
    answer_KN, gradient_times_input_N = _answers(frozen, tokens_NT, direction_KND)
    tail = frozen.tail(tokens_NT.shape[1] - 1)  # Δ is read at the last position alone
    cotangent_KBTD = direction_KND.new_zeros(len(direction_KND), *frozen.residual[0].shape)
    cotangent_KBTD[:, :, -1:] = torch.stack([tail.readout(part_ND[:, None]) for part_ND in direction_KND])
    pulled, z_LBTHd = pull(frozen, cotangent_KBTD)
    direct = direct_shares(frozen, cotangent_KBTD)
    norm_bias = frozen.decoder.norm.bias
    norm_bias_KN = 0 if norm_bias is None else (direction_KND * norm_bias).sum(-1)
    return {
        "answer": answer_KN,
        "gradient_times_input": gradient_times_input_N,
        "tokens": pulled.token_shares(frozen).mT,
        "carried": (pulled.z_LKBTHd * z_LBTHd[:, None]).sum((3, 5)).permute(1, 0, 3, 2),
        "direct": direct.heads_LKBH.permute(1, 0, 3, 2),
        "mlps": direct.mlps_LKB.transpose(0, 1),
        "embedding": direct.embedding_KB,
        "biases": (direct.biases_KB + norm_bias_KN).detach(),
    }


def _answers(
    frozen: Frozen, tokens_NT: Tensor, direction_KND: Tensor
) -> tuple[Float[Tensor, "K N"], Float[Tensor, " N"]]:
    """Δ of both readouts as the model itself gives it, and gradient × input of the first, Σ_j ⟨∂Δ/∂x_j, x_j⟩."""
    decoder, last = frozen.decoder, len(frozen.layers) - 1
    x_NTD = frozen.residual[0].detach().requires_grad_()
    with torch.enable_grad():
        trace = decoder.trace(tokens_NT, start=(0, x_NTD), sites=("resid_post",), layers=(last,), logits=None)
        answer_KN = (decoder.norm(trace["resid_post", last][:, -1]) * direction_KND).sum(-1)
        (gradient_NTD,) = torch.autograd.grad(answer_KN[0].sum(), x_NTD)
    return answer_KN.detach(), (gradient_NTD * x_NTD).sum((1, 2)).detach()


def _table(pair_rows: PairRows, by_pair: Mapping[str, np.ndarray], present: set[int]) -> HeadTable:
    """Rows of heads, layers and the model from values with pairs last; `present` are the PLACES that prompts have."""
    tables: list[HeadTable] = []

    def add(metric: str, values_XP: np.ndarray, **columns: Any) -> None:
        tables.append(pair_rows.mean(metric, np.moveaxis(values_XP, -1, 0), **columns))

    for kind in ("direct", "carried"):
        own_LHP, other_LHP = by_pair[kind]
        add(f"answer_{kind}_nats", own_LHP, null=other_LHP.mean(-1))
        p_LH = sign_flip_test(np.moveaxis(own_LHP - other_LHP, -1, 0), pair_rows.generator, draws=pair_rows.sign_flips)
        add(f"answer_{kind}_excess_nats", own_LHP - other_LHP, null=0.0, p=p_LH)
    heads_KLP, mlps_KLP = by_pair["direct"].sum(2), by_pair["mlps"]
    for name, (own_LP, other_LP) in {"heads": heads_KLP, "mlp": mlps_KLP}.items():
        add(f"layer_{name}_answer_nats", own_LP, null=other_LP.mean(-1))
    of_model = {**by_pair, "heads": by_pair["direct"].sum((1, 2)), "mlps": mlps_KLP.sum(1)}
    add("answer_nats", of_model["answer"][0], null=of_model["answer"][1].mean())
    for name in PARTS:
        add(f"answer_{name}_nats", of_model[name][0], null=of_model[name][1].mean())
    shares, reason = pair_rows.shares(np.stack([of_model[name][0] for name in PARTS]), of_model["answer"][0], "Δ is")
    tables += [shares[at].rows(f"answer_{name}_share", unit="pair", **reason) for at, name in enumerate(PARTS)]
    for place, name in enumerate(PLACES):
        own_P, other_P = of_model["places"][:, place]
        if place in present:
            add(f"answer_{name}_nats", own_P, null=other_P.mean())
        else:
            absent = {"reason": "the prompts have no such tokens", "n": len(own_P), "unit": "pair"}
            tables.append(HeadTable.whole(f"answer_{name}_nats", None, **absent))
    return HeadTable.concat(tables)


def _error_row(lenses: list[dict[str, np.ndarray]], pairs: int) -> HeadTable:
    largest = max(np.abs(lens["answer"][0]).max() for lens in lenses) or np.nan
    error, control = (max(lens[name].max() for lens in lenses) / largest for name in ("error", "control"))
    reason = "Δ is 0 for every prompt"
    return HeadTable.whole("answer_lens_error", error, null=control, n=pairs, unit="pair", reason=reason)


def _tokens(pair_rows: PairRows, prompts: Prompts, lenses: list[dict[str, np.ndarray]], *, clean: bool) -> Figure:
    """Shares by token for the largest set of prompts with one format and one order of the two numbers."""
    cells = []
    for group, lens in zip(prompts.groups, lenses, strict=True):
        first_N = right_first(prompts, group, clean=clean)
        for is_first, rows_N in ((True, first_N), (False, ~first_N)):
            cells.append((group.rows(rows_N), lens["tokens"][..., rows_N], is_first))
    group, token_KTN, is_first = max(cells, key=lambda cell: len(cell[0]))
    tokens_NT, place_T = lens_tokens(group, clean=clean)
    pairs, pair_N = np.unique(group.units_N, return_inverse=True)
    share_NP = (pair_N[:, None] == np.arange(len(pairs))) / np.bincount(pair_N)
    own_PT, other_PT = ((token_TN @ share_NP).T for token_TN in token_KTN)
    return tokens_figure(
        pair_rows.mean("tokens", own_PT, null=other_PT.mean(0)).rows(),
        token_labels(tokens_NT, prompts.decode),
        [PLACES[_PLACES[place]][0] for place in place_T],
        f"format {group.format}, the right answer {'first' if is_first else 'last'}",
    )


def right_first(prompts: Prompts, group: PromptGroup, *, clean: bool) -> np.ndarray:
    """Whether each row's prompt names the right number before the wrong one, bool [N]."""
    texts = [prompts.decode(row.tolist()) for row in (group.clean_NT if clean else group.corrupted_NT)]
    pairs = [prompts.pairs[unit] for unit in group.units_N]
    return np.array([text.find(pair.right) < text.find(pair.wrong) for text, pair in zip(texts, pairs, strict=True)])


def heads_figure(heads: HeadTable) -> Figure:
    """Maps of heads' shares of Δ; a star marks heads that add more or less to other pairs' answers."""
    panels = [
        head_panel(AnswerLens.metrics, heads, f"answer_{kind}_nats", tested=f"answer_{kind}_excess_nats", centre=0.0)
        for kind in ("direct", "carried")
    ]
    return head_map(
        panels,
        mark="q < 0.05, against other pairs' answers",
        caption="What each head adds to Δ, the logit of the right answer less that of the wrong one: by what it "
        "writes for the output itself, and by all paths. A head that favours a form of answer, whatever the numbers, "
        "adds as much for other pairs' answers; a star marks heads that add more or less for their own.",
    )


def tokens_figure(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], places: Sequence[str], prompts: str
) -> Figure:
    """The part of Δ from the token at each position, coloured by the position's place."""
    return interval_plot(
        [interval(label, row, place) for row, label, place in zip(rows, labels, places, strict=True)],
        xlabel=f"Δ put there by the token, nats ({prompts})",
        zero_line=True,
        caption="What each token of the prompt adds to Δ, the logit of the right answer less that of the wrong one, "
        "with 95 % intervals over pairs. Hollow diamonds: what the same token adds to the answers of other pairs.",
    )


def token_labels(tokens_NT: np.ndarray, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The token's text at each position; where prompts differ, the first prompt's token with an ellipsis."""
    alike_T = (tokens_NT == tokens_NT[:1]).all(0)
    texts = [drawable(decode([token])) for token in tokens_NT[0].tolist()]
    return [text if alike else f"{text} …" for text, alike in zip(texts, alike_T, strict=True)]
