"""Topic probes of all layers against a plain loop over layers with scikit-learn; run as

    python -m tests.benchmarks.probes

The model has the shape of mode laptop and random weights; half of each topic's tokens are its own. For every place of
the residual stream both fit a topic probe for each penalty, choose one on sequences of their own, and fit the control
probe. The plain loop is that of scikit-learn's user guide: StandardScaler and LogisticRegression fitted anew for every
penalty on the model's outputs, one forward pass a place. Printed are the ratio of times and what each gets right of the
sequences to test on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headdyn.analysis.probes import TopicProbes
from headdyn.analysis.probes_measure import fit_probes, score
from headdyn.analysis.sequences import Sequences
from headdyn.models.decoder import Decoder
from tests.benchmarks.figures import three
from tests.benchmarks.shapes import SHAPES, machine
from tests.benchmarks.training_step import timed

SHAPE, TOPICS = SHAPES["laptop"], 3
SETTINGS = TopicProbes()


def sequences(count: int, seed: int) -> Sequences:
    """Segments of 32 tokens: half of the tokens any, half from the topic's own third of the vocabulary."""
    generator = np.random.default_rng(seed)
    topics_NT = generator.integers(0, TOPICS, (count, SHAPE.length // 32)).repeat(32, axis=1)
    own_NT = (generator.integers(0, SHAPE.vocabulary // TOPICS, topics_NT.shape) * TOPICS) + topics_NT
    any_NT = generator.integers(0, SHAPE.vocabulary, topics_NT.shape)
    return Sequences(np.where(generator.random(topics_NT.shape) < 0.5, own_NT, any_NT), topics_NT)


def by_headdyn(decoder: Decoder, fit: Sequences, choose: Sequences, test: Sequences, control_V: np.ndarray) -> float:
    probes = fit_probes(SETTINGS, decoder, fit, choose, control_V, np.random.default_rng(0))
    right_NL, _ = score(decoder, test, control_V, probes)
    return float(right_NL.mean())


def by_scikit_learn(
    decoder: Decoder, fit: Sequences, choose: Sequences, test: Sequences, control_V: np.ndarray
) -> float:
    accuracies = []
    for place in range(decoder.config.num_layers + 1):

        def at(part: Sequences, positions_P: np.ndarray, place: int = place) -> tuple[np.ndarray, ...]:
            tokens_NT = torch.from_numpy(part.tokens_NT)
            with torch.no_grad():
                if place == 0:
                    states_NTD = decoder.embeddings(tokens_NT, 0)
                else:
                    states_NTD = decoder.trace(tokens_NT, sites=("resid_post",))["resid_post", place - 1]
            chosen = (arrays[:, positions_P] for arrays in (part.tokens_NT, part.topics_NT))
            return states_NTD[:, positions_P].flatten(0, 1).numpy(), *(array.ravel() for array in chosen)

        some_P = np.random.default_rng(place).permutation(SHAPE.length)[: SETTINGS.tokens_per_sequence]
        fit_XD, fit_tokens_X, fit_topics_X = at(fit, some_P)
        choose_XD, _, choose_topics_X = at(choose, some_P)

        def fitted(penalty: float, labels_X: np.ndarray, fit_XD: np.ndarray = fit_XD):  # type: ignore[no-untyped-def]
            model = LogisticRegression(C=1 / (penalty * len(labels_X)), max_iter=SETTINGS.max_iterations)
            return make_pipeline(StandardScaler(), model).fit(fit_XD, labels_X)

        candidates = {penalty: fitted(penalty, fit_topics_X) for penalty in SETTINGS.penalties}
        losses = {p: log_loss(choose_topics_X, model.predict_proba(choose_XD)) for p, model in candidates.items()}
        best = min(losses, key=losses.__getitem__)
        control = fitted(best, control_V[fit_tokens_X])
        test_XD, test_tokens_X, test_topics_X = at(test, np.arange(SHAPE.length))
        accuracies.append(candidates[best].score(test_XD, test_topics_X))
        control.score(test_XD, control_V[test_tokens_X])
    return float(np.mean(accuracies))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    decoder = SHAPE.decoder(std=SHAPE.d_model**-0.5)
    sizes = (SETTINGS.fit_sequences, SETTINGS.choose_sequences, SETTINGS.test_sequences)
    fit, choose, test = (sequences(size, seed) for seed, size in enumerate(sizes))
    control_V = np.random.default_rng(9).integers(0, TOPICS, SHAPE.vocabulary)
    accuracy = {work.__name__: work(decoder, fit, choose, test, control_V) for work in (by_headdyn, by_scikit_learn)}
    ours, theirs = accuracy.values()
    assert abs(ours - theirs) < 0.02, accuracy  # they fit on other positions of the same sequences
    seconds = np.array(
        [
            [
                timed(lambda: by_headdyn(decoder, fit, choose, test, control_V)),
                timed(lambda: by_scikit_learn(decoder, fit, choose, test, control_V)),
            ]
            for _ in range(arguments.repetitions)
        ]
    )
    ratio = seconds[:, 1] / seconds[:, 0]
    median = np.median(seconds, axis=0)
    print(f"{three(ratio)} times a scikit-learn loop (at least 3): {median[0]:.3g} s against {median[1]:.3g} s")
    print(f"accuracy over all places {ours:.1%} and {theirs:.1%}")
    if arguments.out:
        record = {"ratio": ratio.tolist(), "seconds": median.tolist(), "accuracy": accuracy, "machine": machine()}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
