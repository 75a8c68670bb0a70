"""Topic probes fitted, chosen and scored, with their baselines and control task (science.md §7).

Letters as in models/decoder.py; N sequences, P probed positions a sequence, X probed tokens, S topics, C classes;
L + 1 places in the residual stream: 0 is the embedding, l the output of the l-th layer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from headdyn.analysis.estimates import Estimate, estimate, means, ratio_units
from headdyn.analysis.figure_parts import layer_curve, topic_intervals
from headdyn.analysis.probes import REFERENCES, TopicProbes
from headdyn.analysis.sequences import Sequences
from headdyn.core.figures import Figure, curves
from headdyn.core.kept_parts import Part, parts
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import sign_flip_test
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

_BATCH_TOKENS = 4096  # in a traced batch: 4096 × D × L floats of residual stream
_SMOOTHING = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # pseudo-counts to choose from for the baselines' tables


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw activations, its standardisation folded in: label = argmax(x @ weight + bias)."""

    weight_DC: np.ndarray
    bias_C: np.ndarray
    classes_C: np.ndarray


def measure(settings: TopicProbes, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Layer rows of accuracy, control accuracy and selectivity; model rows of the middle layer and the baselines."""
    fit, choose, test = split_parts(settings, corpus, generator)
    control_V = generator.choice(fit.topics_NT.ravel(), size=corpus.vocab_size)  # with the topics' frequencies
    probes = fit_probes(settings, decoder, fit, choose, control_V, generator)
    given_LNT, control_right_NL = score(decoder, test, control_V, probes)
    right_NL = (given_LNT == test.topics_NT).mean(2).T
    ceiling_N = None
    if corpus.oracle is not None:
        ceiling_N = (corpus.oracle.filter(test.tokens_NT)[1].argmax(-1) == test.topics_NT).mean(1)
    baselines = baseline_accuracies(fit, choose, test, corpus.vocab_size, corpus.num_topics)
    table = accuracy_rows(settings, right_NL, control_right_NL, baselines, ceiling_N, generator)
    by_topic, null_S = topic_accuracies(settings, given_LNT[_middle(given_LNT)], test, corpus.num_topics, generator)
    figures = {
        "accuracy": _figure(table),
        "by_topic": topic_intervals(
            corpus.topic_names,
            by_topic,
            "probe accuracy on the topic's tokens (%)",
            scale=100,
            null=null_S,
            caption="How often the probe behind the middle layer is right on the tokens of each topic. Chance: how "
            "often it gives that topic at the same positions of other sequences.",
        ),
    }
    ends = [
        by_topic[at].rows(f"probe_accuracy_{which}_topic", null=null_S[at], reason="no test token has the topic")
        for which, at in (("first", 0), ("last", -1))
    ]
    return Findings(table=HeadTable.concat([table, *ends]), figures=figures)


def split_parts(settings: TopicProbes, corpus: Corpus, generator: np.random.Generator) -> list[Sequences]:
    """Sequences to fit on, to choose the penalty on and to test on, without overlap; fewer where the corpus is small.

    Raises ValueError for too few validation sequences, and where those to fit on have a single topic.
    """
    settings.check(corpus)
    wanted = (settings.fit_sequences, settings.choose_sequences, settings.test_sequences)
    share = min(1.0, len(corpus.val) / sum(wanted))
    sizes = [max(1, int(share * size)) for size in wanted]
    indices = generator.permutation(len(corpus.val))[: sum(sizes)]
    splits = [Sequences.of(corpus, at) for at in np.split(indices, np.cumsum(sizes)[:-1])]
    if len(np.unique(splits[0].topics_NT)) < 2:
        raise ValueError(
            f"a topic probe needs two topics, but the {settings.fit_sequences} sequences to fit on have one; "
            "raise analysis.probes.fit_sequences, or leave probes out of analysis=[...]"
        )
    return splits


def fit_probes(
    settings: TopicProbes,
    decoder: Decoder,
    fit: Sequences,
    choose: Sequences,
    control_V: np.ndarray,
    generator: np.random.Generator,
) -> list[tuple[Probe, Probe]]:
    """The topic probe and the control probe of every place, on the same positions and with the same penalty."""
    at_fit, at_choose = (_positions(part, settings.tokens_per_sequence, generator) for part in (fit, choose))
    fit_states, choose_states = _states(decoder, fit, at_fit), _states(decoder, choose, at_choose)
    topics_X, chosen_X = fit.topics_NT[at_fit], choose.topics_NT[at_choose]
    control_X = control_V[fit.tokens_NT[at_fit]]
    # Fits this small are slower with more threads: on two busy cores 0.5 s each with two, 0.03 s with one.
    with threadpool_limits(limits=1):

        def place(at: slice) -> Part:
            pair = probe_pair(settings, fit_states[at.start], topics_X, choose_states[at.start], chosen_X, control_X)
            return {f"{i} {field}": array for i, probe in enumerate(pair) for field, array in vars(probe).items()}

        def probe(part: Part, i: int) -> Probe:
            return Probe(**{field.name: part[f"{i} {field.name}"] for field in dataclasses.fields(Probe)})

        fitted = parts("fitting probes", "places", len(fit_states), 1, place, [topics_X, control_X])
        return [(probe(part, 0), probe(part, 1)) for _, part in fitted]


def _positions(part: Sequences, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` random positions of each sequence (or all), as indices of sequences and of positions, [X] each."""
    every_NT = np.tile(np.arange(part.tokens_NT.shape[1]), (len(part), 1))
    columns_NP = generator.permuted(every_NT, axis=1)[:, :count]
    return np.repeat(np.arange(len(part)), columns_NP.shape[1]), columns_NP.ravel()


def probe_pair(
    settings: TopicProbes,
    fit_XD: np.ndarray,
    topics_X: np.ndarray,
    choose_XD: np.ndarray,
    chosen_X: np.ndarray,
    control_X: np.ndarray,
) -> tuple[Probe, Probe]:
    """The topic probe with the penalty of least loss on the `choose` tokens, and the control probe at that penalty."""
    mean_D, scale_D = fit_XD.mean(0), fit_XD.std(0)
    scale_D = np.where(scale_D > 0, scale_D, 1)
    scaled_XD = (fit_XD - mean_D) / scale_D
    model = LogisticRegression(warm_start=True, max_iter=settings.max_iterations)
    candidates = []
    for penalty in sorted(settings.penalties, reverse=True):
        model.set_params(C=1 / (penalty * len(topics_X))).fit(scaled_XD, topics_X)
        probe = _unstandardised(model, mean_D, scale_D)
        candidates.append((_log_loss(probe, choose_XD, chosen_X), penalty, probe))
    _, best, probe = min(candidates, key=lambda candidate: candidate[0])
    control = LogisticRegression(C=1 / (best * len(topics_X)), max_iter=settings.max_iterations)
    return probe, _unstandardised(control.fit(scaled_XD, control_X), mean_D, scale_D)


def accuracy_rows(
    settings: TopicProbes,
    right_NL: np.ndarray,
    control_right_NL: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    ceiling_N: np.ndarray | None,
    generator: np.random.Generator,
) -> HeadTable:
    """Rows from the share of each test sequence's tokens that probes, baselines and Bayes filter get right."""

    def rows(metric: str, values_NX: np.ndarray, **columns: Any) -> HeadTable:
        return means(values_NX, generator, draws=settings.bootstrap_draws).rows(metric, **columns)

    best_N = max(baselines.values(), key=lambda right_N: float(right_N.mean()))
    null = float(best_N.mean())
    p_L = sign_flip_test(right_NL - best_N[:, None], generator, draws=settings.sign_flips)
    accuracy = means(right_NL, generator, draws=settings.bootstrap_draws)
    middle = _middle(right_NL.T)
    parts = [
        accuracy.rows("probe_accuracy", null=null, p=p_L),
        accuracy[middle].rows("probe_accuracy_middle", null=null, p=p_L[middle]),
        rows("probe_control_accuracy", control_right_NL),
        rows("probe_selectivity", right_NL - control_right_NL, null=0.0),
        *(rows(f"probe_{name}", right_N) for name, right_N in baselines.items()),
    ]
    if ceiling_N is None:
        absent = {"reason": "the corpus has no Bayes filter", "n": len(right_NL), "unit": "sequence"}
        parts.append(HeadTable.whole("probe_ceiling", None, **absent))
    else:
        parts.append(rows("probe_ceiling", ceiling_N, null=null))
    return HeadTable.concat(parts).with_q()


def _middle(every_L: np.ndarray) -> int:
    """The middle of the L + 1 places: L // 2, the output of L // 2 layers."""
    return (len(every_L) - 1) // 2


def topic_accuracies(
    settings: TopicProbes, given_NT: np.ndarray, test: Sequences, num_topics: int, generator: np.random.Generator
) -> tuple[Estimate, np.ndarray]:
    """Accuracy of the probe's topics `given_NT` on the tokens of each topic, [S], and its null, [S].

    NaN for a topic that no token has.

    The null is how often the probe gives the topic at the same positions of other sequences: the exact mean over all
    ways to give a sequence another one's topics. p tests accuracy minus null.
    """
    topic_NTS = test.topics_NT[..., None] == np.arange(num_topics)
    given_NTS = given_NT[..., None] == np.arange(num_topics)
    others_NTS = (given_NTS.sum(0) - given_NTS) / (len(test) - 1)
    right_NS, chance_NS, count_NS = ((topic_NTS * by).sum(1) for by in (given_NTS, others_NTS, 1))
    draws: dict[str, Any] = {"sign_flips": settings.sign_flips, "bootstrap_draws": settings.bootstrap_draws}
    beyond = estimate(right_NS - chance_NS, count_NS, generator, **draws)
    accuracy = means(ratio_units(right_NS, count_NS), generator, draws=settings.bootstrap_draws)
    return dataclasses.replace(accuracy, p=beyond.p), accuracy.value - beyond.value


def residuals(
    decoder: Decoder, part: Sequences, compute: Callable[[slice, list[Float[Tensor, "B T D"]]], Part]
) -> Iterator[tuple[slice, Part]]:
    """`compute(rows, states)` for batches of sequences; `states` is their residual stream at every place, float32."""
    layers = range(decoder.config.num_layers)

    def batch(rows: slice, tokens_BT: Tensor, documents_BT: Tensor | None) -> Part:
        with torch.no_grad():
            embedded_BTD = decoder.embeddings(tokens_BT, 0)
            trace = decoder.trace(
                tokens_BT, start=(0, embedded_BTD), sites=("resid_post",), logits=None, documents_BT=documents_BT
            )
        return compute(rows, [embedded_BTD.float(), *(trace["resid_post", layer].float() for layer in layers)])

    return part.parts(_BATCH_TOKENS // part.tokens_NT.shape[1], decoder.embed.weight.device, batch)


def _states(decoder: Decoder, part: Sequences, at: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The residual stream at chosen (sequence, position) pairs, one [X, D] for every place."""
    sequence_X, position_X = at

    def chosen(rows: slice, places: list[Float[Tensor, "B T D"]]) -> Part:
        here_X = (sequence_X >= rows.start) & (sequence_X < rows.stop)
        at_B, at_T = (
            torch.from_numpy(index[here_X]).to(places[0].device) for index in (sequence_X - rows.start, position_X)
        )
        return {str(place): residual_BTD[at_B, at_T].cpu().numpy() for place, residual_BTD in enumerate(places)}

    done = [states for _, states in residuals(decoder, part, chosen)]
    return [np.concatenate([states[place] for states in done]) for place in done[0]]


def score(
    decoder: Decoder, test: Sequences, control_V: np.ndarray, probes: Sequence[tuple[Probe, Probe]]
) -> tuple[np.ndarray, np.ndarray]:
    """The topic that each place's probe gives every test token, [L + 1, N, T], and the control probes' accuracy.

    That is the share of each sequence's tokens that they get right, [N, L + 1]; `control_V` is the control task.
    """
    control_NT = control_V[test.tokens_NT]

    def scored(rows: slice, places: list[Float[Tensor, "B T D"]]) -> Part:
        given = [predict(probe, residual_BTD) for residual_BTD, (probe, _) in zip(places, probes, strict=True)]
        control = [predict(control, residual_BTD) for residual_BTD, (_, control) in zip(places, probes, strict=True)]
        return {"given": np.stack(given), "control_right": (np.stack(control) == control_NT[rows]).mean(2).T}

    done = [part for _, part in residuals(decoder, test, scored)]
    return (
        np.concatenate([part["given"] for part in done], axis=1),
        np.concatenate([part["control_right"] for part in done]),
    )


def predict(probe: Probe, x_BTD: Float[Tensor, "B T D"]) -> np.ndarray:
    """The probe's class of every token, [B, T]."""
    weight_DC, bias_C = (torch.from_numpy(array).to(x_BTD) for array in (probe.weight_DC, probe.bias_C))
    return probe.classes_C[(x_BTD @ weight_DC + bias_C).argmax(-1).cpu().numpy()]


def _unstandardised(model: LogisticRegression, mean_D: np.ndarray, scale_D: np.ndarray) -> Probe:
    """The model as a probe of raw activations. For two classes scikit-learn has only the second's weights."""
    weight_CD, bias_C = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight_CD, bias_C = np.stack((0 * weight_CD[0], weight_CD[0])), np.array([0 * bias_C[0], bias_C[0]])
    weight_DC = (weight_CD / scale_D).T
    return Probe(weight_DC=weight_DC, bias_C=bias_C - mean_D @ weight_DC, classes_C=model.classes_)


def _log_loss(probe: Probe, x_XD: np.ndarray, topics_X: np.ndarray) -> float:
    """Mean −log p of the true topic in nats, over the tokens whose topic occurred in fitting."""
    known = np.isin(topics_X, probe.classes_C)
    log_probability_XC = special.log_softmax(x_XD[known] @ probe.weight_DC + probe.bias_C, axis=1)
    return float(-log_probability_XC[np.arange(known.sum()), np.searchsorted(probe.classes_C, topics_X[known])].mean())


def baseline_accuracies(
    fit: Sequences, choose: Sequences, test: Sequences, vocab_size: int, num_topics: int
) -> dict[str, np.ndarray]:
    """Accuracies on each test sequence, [N], of three rules learnt on the fit part.

    They give the commonest topic, the likeliest topic of the token, and the likeliest topic of the position.
    """
    majority = np.bincount(fit.topics_NT.ravel(), minlength=num_topics).argmax()
    right = {"majority": (test.topics_NT == majority).mean(1)}
    length = test.tokens_NT.shape[1]
    tokens = [part.tokens_NT for part in (fit, choose, test)]
    positions = [np.broadcast_to(np.arange(length), part.tokens_NT.shape) for part in (fit, choose, test)]
    features = {"token_identity": (tokens, vocab_size), "position": (positions, length)}
    for name, ((fit_NT, choose_NT, test_NT), size) in features.items():
        table_XS = topic_table(fit_NT, fit.topics_NT, choose_NT, choose.topics_NT, size, num_topics)
        right[name] = (table_XS.argmax(-1)[test_NT] == test.topics_NT).mean(1)
    return right


def topic_table(
    ids_NT: np.ndarray, topics_NT: np.ndarray, choose_ids: np.ndarray, choose_topics: np.ndarray, size: int, count: int
) -> np.ndarray:
    """p(topic | id), [size, S], from counts smoothed towards the topics' frequencies.

    The strength of smoothing, one of `_SMOOTHING`, is that with the least loss on `choose_ids` and `choose_topics`.
    Logistic regression on the one-hot code of a discrete feature converges to such a table.
    """
    counts_XS = np.bincount((ids_NT * count + topics_NT).ravel(), minlength=size * count).reshape(size, count)
    prior_S = (counts_XS.sum(0) + 1) / (counts_XS.sum() + count)
    tables = [counts_XS + strength * prior_S for strength in _SMOOTHING]
    tables = [table / table.sum(1, keepdims=True) for table in tables]
    losses = [-np.log(table[choose_ids, choose_topics]).mean() for table in tables]
    return tables[int(np.argmin(losses))]


def _figure(table: HeadTable) -> Figure:
    summary = table.summary()
    levels = {label: summary[f"probe_{name}"].get("value") for name, label in REFERENCES.items()}
    return curves(
        [
            layer_curve(table, "probe_accuracy", "topic probe"),
            layer_curve(table, "probe_control_accuracy", "control task"),
        ],
        xlabel="layer of the residual stream (0: the embedding)",
        ylabel="accuracy (share of test tokens)",
        references={label: level for label, level in levels.items() if level is not None},
        whole_x=True,
        caption="How well a linear probe tells a token's topic from each place in the residual stream, with 95 % "
        "bands over test sequences. Chance is the best of the baselines (horizontal lines). If the probe is as good on "
        "the control task, its accuracy says little about the model.",
    )
