"""Linear probes: which layers of the residual stream say what topic a token stands in (science.md §7).

Letters as in models/decoder.py; N sequences, P probed positions a sequence, S topics; L + 1 places in the residual
stream, 0 behind the embedding and l behind layer l.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import special
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from headdyn.core.figures import Curve, curves
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval, sign_flip_test
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

_BATCH_TOKENS = 4096  # of a traced batch: 4096 × D × L floats of residual stream
_FEWEST_SEQUENCES = 12  # four to each part: below that neither penalty nor interval means anything
_SMOOTHING = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # pseudo-counts to choose from for the table baselines


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw activations, its standardisation folded in: label = argmax(x @ weight + bias)."""

    weight_DC: np.ndarray
    bias_C: np.ndarray
    classes_C: np.ndarray


@dataclass(frozen=True)
class Part:
    """Sequences of one of the three splits."""

    tokens_NT: np.ndarray
    topics_NT: np.ndarray
    documents_NT: np.ndarray | None = None  # where attention stays inside documents

    @classmethod
    def of(cls, corpus: Corpus, at: np.ndarray) -> Part:
        """The validation sequences at these indices."""
        val = corpus.val
        documents_NT = None
        if corpus.mask_documents:
            assert val.documents_NT is not None
            documents_NT = val.documents_NT[at].astype(np.int64)
        return cls(val.tokens_NT[at].astype(np.int64), val.topics_NT[at], documents_NT)


@dataclass(frozen=True, kw_only=True)
class TopicProbes:
    """Topic probes at every place in the residual stream, with baselines, control task and ceiling.

    Sequences of the validation split (unseen in training the model) are drawn into three parts: probes are fitted on
    `tokens_per_sequence` positions (or all) of `fit_sequences`, the penalty is chosen from `penalties` on as many
    positions of `choose_sequences`, and everything is scored on all positions of `test_sequences`. Intervals (95 %,
    BCa) and p (sign flips of the difference to the best baseline) take test sequences as units.

    The null column of accuracies is the best of three baselines: the majority topic, the token's identity alone and its
    position alone, the latter two as smoothed tables over every token of `fit_sequences`. The control task (Hewitt &
    Liang 2019) gives each token type a random topic and fits the same probe to it; selectivity is the accuracy minus
    the accuracy on that task. The ceiling is the Bayes filter's posterior on the same test tokens, absent where the
    corpus has no oracle.
    A smaller validation split is cut in the same proportions. Raises ValueError where it is too small for that.
    """

    fit_sequences: int = 96
    choose_sequences: int = 32
    test_sequences: int = 128
    tokens_per_sequence: int = 64
    penalties: tuple[float, ...] = (0.1, 0.01, 0.001)
    max_iterations: int = 1_000
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["layer"]] = "layer"
    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "probe_accuracy": Metric(meaning="share of test tokens whose topic the probe gives", low=0, high=1),
        "probe_accuracy_middle": Metric(meaning="probe_accuracy behind layer L // 2", low=0, high=1),
        "probe_control_accuracy": Metric(meaning="accuracy on random topics per token type", low=0, high=1),
        "probe_selectivity": Metric(meaning="probe_accuracy minus probe_control_accuracy", low=-1, high=1),
        "probe_majority": Metric(meaning="accuracy of always giving the commonest topic", low=0, high=1),
        "probe_token_identity": Metric(meaning="accuracy from the token alone", low=0, high=1),
        "probe_position": Metric(meaning="accuracy from the position alone", low=0, high=1),
        "probe_ceiling": Metric(meaning="accuracy of the Bayes filter's topic posterior", low=0, high=1),
    }

    def __post_init__(self) -> None:
        for name in ("fit_sequences", "choose_sequences", "test_sequences", "tokens_per_sequence", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"analysis.probes.{name}={getattr(self, name)} must be at least 1")
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"analysis.probes.penalties={self.penalties} must be one or more numbers above 0")
        if self.sign_flips < 9_999:
            raise ValueError(f"analysis.probes.sign_flips={self.sign_flips} is too few; set 9999 or more")
        if self.bootstrap_draws < 100:
            raise ValueError(f"analysis.probes.bootstrap_draws={self.bootstrap_draws} must be at least 100")

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError where the validation split is too small to be cut into three parts."""
        if len(corpus.val) < _FEWEST_SEQUENCES:
            raise ValueError(
                f"topic probes need at least {_FEWEST_SEQUENCES} validation sequences (to fit, choose and test), but "
                f"the corpus has {len(corpus.val)}; bring more text, or leave probes out of analysis=[...]"
            )

    def __call__(self, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
        """Layer rows of accuracy, control accuracy and selectivity; model rows of the middle and the baselines."""
        fit, choose, test = self._parts(corpus, generator)
        control_V = generator.choice(fit.topics_NT.ravel(), size=corpus.vocab_size)  # the topics' own frequencies
        probes = self._fit(decoder, fit, choose, control_V, generator)
        right_NL, control_right_NL = _score(decoder, test, control_V, probes)
        baselines = _baselines(fit, choose, test, corpus)
        ceiling_N = None
        if corpus.oracle is not None:
            ceiling_N = (corpus.oracle.filter(test.tokens_NT)[1].argmax(-1) == test.topics_NT).mean(1)
        table = self._table(right_NL, control_right_NL, baselines, ceiling_N, generator)
        return Findings(table=table, figures={"accuracy": _figure(table)})

    def _parts(self, corpus: Corpus, generator: np.random.Generator) -> list[Part]:
        self.check(corpus)
        wanted = (self.fit_sequences, self.choose_sequences, self.test_sequences)
        share = min(1.0, len(corpus.val) / sum(wanted))
        sizes = [max(1, int(share * size)) for size in wanted]
        chosen = generator.permutation(len(corpus.val))[: sum(sizes)]
        parts = [Part.of(corpus, at) for at in np.split(chosen, np.cumsum(sizes)[:-1])]
        if len(np.unique(parts[0].topics_NT)) < 2:
            raise ValueError(
                f"a topic probe needs two topics, but the {self.fit_sequences} sequences to fit on have one; "
                "raise analysis.probes.fit_sequences, or leave probes out of analysis=[...]"
            )
        return parts

    def _fit(
        self, decoder: Decoder, fit: Part, choose: Part, control_V: np.ndarray, generator: np.random.Generator
    ) -> list[tuple[Probe, Probe]]:
        """The topic probe and the control probe of every place, on the same positions and with the same penalty."""
        at_fit, at_choose = (self._positions(part, generator) for part in (fit, choose))
        fit_states, choose_states = _states(decoder, fit, at_fit), _states(decoder, choose, at_choose)
        topics, chosen_topics = fit.topics_NT[at_fit], choose.topics_NT[at_choose]
        control = control_V[fit.tokens_NT[at_fit]]
        # Fits this small lose by threads: on two busy cores 0.5 s each with two, 0.03 s with one.
        with threadpool_limits(limits=1):
            return [
                self._probe_pair(states_XD, topics, other_XD, chosen_topics, control)
                for states_XD, other_XD in zip(fit_states, choose_states, strict=True)
            ]

    def _positions(self, part: Part, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        count, length = part.tokens_NT.shape
        every_NT = np.tile(np.arange(length), (count, 1))
        columns_NP = generator.permuted(every_NT, axis=1)[:, : self.tokens_per_sequence]
        return np.repeat(np.arange(count), columns_NP.shape[1]), columns_NP.ravel()

    def _probe_pair(
        self,
        fit_XD: np.ndarray,
        topics_X: np.ndarray,
        choose_XD: np.ndarray,
        chosen_X: np.ndarray,
        control_X: np.ndarray,
    ) -> tuple[Probe, Probe]:
        mean_D, scale_D = fit_XD.mean(0), fit_XD.std(0)
        scale_D = np.where(scale_D > 0, scale_D, 1)
        scaled_XD = (fit_XD - mean_D) / scale_D
        model = LogisticRegression(warm_start=True, max_iter=self.max_iterations)
        candidates = []
        for penalty in sorted(self.penalties, reverse=True):
            model.set_params(C=1 / (penalty * len(topics_X))).fit(scaled_XD, topics_X)
            probe = _unstandardised(model, mean_D, scale_D)
            candidates.append((_log_loss(probe, choose_XD, chosen_X), penalty, probe))
        _, best, probe = min(candidates, key=lambda candidate: candidate[0])
        other = LogisticRegression(C=1 / (best * len(topics_X)), max_iter=self.max_iterations).fit(scaled_XD, control_X)
        return probe, _unstandardised(other, mean_D, scale_D)

    def _table(
        self,
        right_NL: np.ndarray,
        control_right_NL: np.ndarray,
        baselines: Mapping[str, np.ndarray],
        ceiling_N: np.ndarray | None,
        generator: np.random.Generator,
    ) -> HeadTable:
        best = max(baselines, key=lambda name: float(baselines[name].mean()))
        null = float(baselines[best].mean())
        p_L = sign_flip_test(right_NL - baselines[best][:, None], generator, draws=self.sign_flips)
        common: dict[str, Any] = {"n": len(right_NL), "unit": "sequence"}

        def interval(values: np.ndarray) -> dict[str, Any]:
            low, high = bootstrap_interval(values, generator, draws=self.bootstrap_draws)
            return {"ci_low": low, "ci_high": high, **common}

        accuracy = interval(right_NL)
        middle = (right_NL.shape[1] - 1) // 2
        at_middle = {name: bound[middle] for name, bound in accuracy.items() if np.ndim(bound)} | common
        difference_NL = right_NL - control_right_NL
        tables = [
            HeadTable.per_layer("probe_accuracy", right_NL.mean(0), null=null, p=p_L, **accuracy),
            HeadTable.whole("probe_accuracy_middle", right_NL[:, middle].mean(), null=null, p=p_L[middle], **at_middle),
            HeadTable.per_layer("probe_control_accuracy", control_right_NL.mean(0), **interval(control_right_NL)),
            HeadTable.per_layer("probe_selectivity", difference_NL.mean(0), null=0.0, **interval(difference_NL)),
        ]
        tables += [
            HeadTable.whole(f"probe_{name}", right_N.mean(), **interval(right_N)) for name, right_N in baselines.items()
        ]
        if ceiling_N is None:
            tables.append(HeadTable.whole("probe_ceiling", None, reason="the corpus has no Bayes filter", **common))
        else:
            tables.append(HeadTable.whole("probe_ceiling", ceiling_N.mean(), null=null, **interval(ceiling_N)))
        return HeadTable.concat(tables).with_q()


def _residuals(decoder: Decoder, part: Part) -> Iterator[tuple[slice, list[Tensor]]]:
    """Batches of sequences, each with its residual stream at every place, [B, T, D] in float32."""
    device, layers = decoder.embed.weight.device, range(decoder.config.num_layers)
    count, length = part.tokens_NT.shape
    size = max(1, _BATCH_TOKENS // length)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        tokens_BT = torch.from_numpy(part.tokens_NT[rows]).to(device)
        documents_BT = None if part.documents_NT is None else torch.from_numpy(part.documents_NT[rows]).to(device)
        with torch.no_grad():
            embedded_BTD = decoder.embeddings(tokens_BT, 0)
            trace = decoder.trace(
                tokens_BT,
                start=(0, embedded_BTD),
                sites=("resid_post",),
                logits=None,
                documents_BT=documents_BT,
            )
        yield rows, [embedded_BTD.float(), *(trace["resid_post", layer].float() for layer in layers)]


def _states(decoder: Decoder, part: Part, at: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The residual stream at chosen (sequence, position) pairs, one [X, D] for every place."""
    sequence_X, position_X = at
    states: list[list[np.ndarray]] = [[] for _ in range(decoder.config.num_layers + 1)]
    for rows, residuals in _residuals(decoder, part):
        here = (sequence_X >= rows.start) & (sequence_X < rows.stop)
        at_B, at_T = (torch.from_numpy(index[here]) for index in (sequence_X - rows.start, position_X))
        for place, residual_BTD in zip(states, residuals, strict=True):
            place.append(residual_BTD[at_B.to(residual_BTD.device), at_T.to(residual_BTD.device)].cpu().numpy())
    return [np.concatenate(place) for place in states]


def _score(
    decoder: Decoder, test: Part, control_V: np.ndarray, probes: Sequence[tuple[Probe, Probe]]
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each test sequence's tokens that topic and control probes get right, both [N, L + 1]."""
    right, control_right = np.empty((2, len(test.tokens_NT), len(probes)))
    control_NT = control_V[test.tokens_NT]
    for rows, residuals in _residuals(decoder, test):
        for place, (residual_BTD, (probe, other)) in enumerate(zip(residuals, probes, strict=True)):
            right[rows, place] = (_predict(probe, residual_BTD) == test.topics_NT[rows]).mean(1)
            control_right[rows, place] = (_predict(other, residual_BTD) == control_NT[rows]).mean(1)
    return right, control_right


def _predict(probe: Probe, x_BTD: Tensor) -> np.ndarray:
    weight_DC, bias_C = (torch.from_numpy(array).to(x_BTD) for array in (probe.weight_DC, probe.bias_C))
    return probe.classes_C[(x_BTD @ weight_DC + bias_C).argmax(-1).cpu().numpy()]


def _unstandardised(model: LogisticRegression, mean_D: np.ndarray, scale_D: np.ndarray) -> Probe:
    """scikit-learn keeps one row of weights for two classes (the second's log-odds): spell both out."""
    weight_CD, bias_C = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight_CD, bias_C = np.stack((0 * weight_CD[0], weight_CD[0])), np.array([0 * bias_C[0], bias_C[0]])
    weight_DC = (weight_CD / scale_D).T
    return Probe(weight_DC=weight_DC, bias_C=bias_C - mean_D @ weight_DC, classes_C=model.classes_)


def _log_loss(probe: Probe, x_XD: np.ndarray, topics_X: np.ndarray) -> float:
    """Mean −log p of the true topic in nats, over the tokens whose topic was there to be learnt."""
    known = np.isin(topics_X, probe.classes_C)
    log_probability_XC = special.log_softmax(x_XD[known] @ probe.weight_DC + probe.bias_C, axis=1)
    return float(-log_probability_XC[np.arange(known.sum()), np.searchsorted(probe.classes_C, topics_X[known])].mean())


def _baselines(fit: Part, choose: Part, test: Part, corpus: Corpus) -> dict[str, np.ndarray]:
    """Per-sequence accuracy [N] of the majority topic, of the token alone and of the position alone."""
    majority = np.bincount(fit.topics_NT.ravel(), minlength=corpus.num_topics).argmax()
    position = [
        np.broadcast_to(np.arange(part.tokens_NT.shape[1]), part.tokens_NT.shape) for part in (fit, choose, test)
    ]
    token = [part.tokens_NT for part in (fit, choose, test)]
    out = {"majority": (test.topics_NT == majority).mean(1)}
    for name, (fit_ids, choose_ids, test_ids), size in (
        ("token_identity", token, corpus.vocab_size),
        ("position", position, test.tokens_NT.shape[1]),
    ):
        table_XS = _table(fit_ids, fit.topics_NT, choose_ids, choose.topics_NT, size, corpus.num_topics)
        out[name] = (table_XS.argmax(-1)[test_ids] == test.topics_NT).mean(1)
    return out


def _table(
    ids_NT: np.ndarray, topics_NT: np.ndarray, choose_ids: np.ndarray, choose_topics: np.ndarray, size: int, count: int
) -> np.ndarray:
    """p(topic | id) from counts, smoothed towards the topics' frequencies as suits the third split: [size, S].

    A table over one discrete feature is what logistic regression on its one-hot code converges to.
    """
    counts_XS = np.bincount((ids_NT * count + topics_NT).ravel(), minlength=size * count).reshape(size, count)
    prior_S = (counts_XS.sum(0) + 1) / (counts_XS.sum() + count)
    tables = [counts_XS + strength * prior_S for strength in _SMOOTHING]
    tables = [table / table.sum(1, keepdims=True) for table in tables]
    losses = [-np.log(table[choose_ids, choose_topics]).mean() for table in tables]
    return tables[int(np.argmin(losses))]


def _figure(table: HeadTable) -> Figure:
    whole = table.summary()
    places = np.arange(len(table.layer_series("probe_accuracy")))
    lines = [
        Curve(
            label=label,
            x=places,
            y=table.layer_series(metric),
            low=table.layer_series(metric, "ci_low"),
            high=table.layer_series(metric, "ci_high"),
        )
        for metric, label in (("probe_accuracy", "topic probe"), ("probe_control_accuracy", "control task"))
    ]
    names = {
        "ceiling": "Bayes ceiling",
        "majority": "majority",
        "token_identity": "token alone",
        "position": "position alone",
    }
    return curves(
        lines,
        xlabel="layer of the residual stream (0: the embedding)",
        ylabel="accuracy (share of test tokens)",
        references={
            label: whole[f"probe_{name}"]["value"] for name, label in names.items() if "value" in whole[f"probe_{name}"]
        },
        whole_x=True,
    )
