"""What numbers of the matrix stand beside: selectivities of attention that reads tags alone, and the power of a test.

`python -m tests.experiments.matrix_references` draws the matrix's corpora again and writes experiments/matrix/tags.json
(even attention by tags), and simulates the test for two groups of heads into experiments/matrix/two_groups_power.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from headdyn.analysis.selectivity import drawn_sequences, topic_contrast
from headdyn.core.randomness import generator
from headdyn.core.statistics import draws_test
from headdyn.data.conversations import Conversations
from headdyn.plan import make_plan
from headdyn.studies.topic_order.retention import best_cut, null_shares

CORPORA = [
    "-m",
    "experiment=matrix",
    "seed=0,1,2,3,4,5,6,7",
    "attention=mha",
    "data_ordering=shuffled",
    "position_enc=rope",
]
LABEL_SWAPS = 20  # as in conf/analysis/attention.yaml
HEADS = 4  # of a layer in laptop mode
APART = (4, 6, 8, 10)  # standard deviations between the means of two pairs of heads
SAMPLES = 10_000


def even_attention(chosen_QK: np.ndarray) -> np.ndarray:
    """Even attention to the chosen tokens so far; to all tokens so far where none of them is chosen. Broadcasts."""
    so_far_QK = np.tril(np.ones(chosen_QK.shape))
    kept_QK = so_far_QK * chosen_QK
    kept_QK = np.where(kept_QK.any(-1, keepdims=True), kept_QK, so_far_QK)
    return np.asarray(kept_QK / kept_QK.sum(-1, keepdims=True))


def selectivity(pattern_NQK: np.ndarray, topics_NT: np.ndarray, swaps_NR: np.ndarray, num_topics: int) -> float:
    """The topic selectivity of these patterns, mean over queries and sequences."""
    labels_NT = torch.from_numpy(topics_NT)
    contrasts = [
        topic_contrast(labels_NT[n], labels_NT[swaps_NR[n]], num_topics).numpy() for n in range(len(topics_NT))
    ]
    return float((pattern_NQK * np.stack(contrasts)).sum(-1).mean())


def by_tags(source: Conversations, folder: Path) -> dict[str, float | int | bool]:
    """Selectivities of attention by tags on all validation sequences, and whether topics are the tags under other names."""
    source.build(folder)
    corpus = source.open(folder)
    draws = generator(source.seed, "attention by tags")
    sequences, swaps_NR = drawn_sequences(corpus, len(corpus.val), LABEL_SWAPS, draws)
    topics_NT = sequences.topics_NT
    speaker_NT, next_NT = np.divmod(sequences.tokens_NT // source.num_symbols, source.num_speakers)
    own_NQK, announced_NQK = (who_NT[:, :, None] == speaker_NT[:, None] for who_NT in (speaker_NT, next_NT))
    scores = [selectivity(even_attention(c), topics_NT, swaps_NR, corpus.num_topics) for c in (own_NQK, announced_NQK)]
    same_topic_NQK = topics_NT[:, :, None] == topics_NT[:, None]
    return {
        "seed": source.seed,
        "own_tag": scores[0],
        "announced_tag": scores[1],
        "topics_are_tags": bool((own_NQK == same_topic_NQK).all()),
    }


def power(apart: float) -> dict[str, float]:
    """How often two pairs of heads so far apart have p < 0.05, and the mean share of variance that the best cut explains."""
    values_RH = generator(0, f"two groups/{apart} apart").standard_normal((SAMPLES, HEADS))
    values_RH[:, HEADS // 2 :] += apart
    share_R = np.array([best_cut(values_H) for values_H in values_RH])
    p_R = draws_test(share_R, null_shares(HEADS), alternative="greater")
    return {"apart": apart, "found": float((p_R < 0.05).mean()), "share": float(share_R.mean())}


def main() -> None:
    tags = []
    for source in (job.data for job in make_plan(CORPORA).jobs):
        assert isinstance(source, Conversations) and source.speaker == "announced"
        with TemporaryDirectory() as folder:
            tags.append(by_tags(source, Path(folder)))
    for name, found in (("tags", tags), ("two_groups_power", list(map(power, APART)))):
        lines = ",\n ".join(map(json.dumps, found))
        Path(f"experiments/matrix/{name}.json").write_text(f"[{lines}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
