"""Sequences that each follow a Markov chain of their own, which can be learnt from the sequence alone.

In-context learning of Markov chains (Edelman et al. 2024, arXiv 2402.11004). Letters as in landmarks/predictors.py.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator
from headdyn.core.settings import Count, Positive, settings
from headdyn.data.corpus import Corpus, Seed, Split
from headdyn.data.lines import NOTHING_TO_SELECT, mean_and_error
from headdyn.data.markov import chain_tokens
from headdyn.studies.landmarks.predictors import bigram_law, next_token_loss, unigram_concentration, unigram_law

_MOST_ROUNDS = 10_000  # rounds of Sinkhorn's iteration; chains of three states take tens
_BALANCE_TOLERANCE = 1e-6


@settings
class FreshChains:
    """Every sequence draws its own chain over `num_states` symbols; the first symbol is uniform.

    `rows=dirichlet`: rows are independent Dirichlet(`concentration`). `rows=doubly_stochastic`: such rows, balanced by
    Sinkhorn's iteration until columns sum to 1 too, so that the stationary law is uniform and counts of single symbols
    say nothing about the next one.
    """

    rows: Literal["dirichlet", "doubly_stochastic"] = "dirichlet"
    num_states: Annotated[int, Field(ge=2, le=64)] = 3
    concentration: Positive = 1.0
    sequence_length: Annotated[int, Field(ge=8)] = 64
    train_sequences: Count
    val_sequences: Count
    seed: Seed

    has_topics: ClassVar[bool] = False

    def build(self, folder: Path) -> None:
        """Draw chains and sequences, and the losses of the exact predictors on the validation split.

        Writes {train,val}_tokens.npy, {train,val}_topics.npy (all 0: there are no topics) and facts.json.
        """
        for split, count in (("train", self.train_sequences), ("val", self.val_sequences)):
            chains_NVV = self.draw_chains(count, generator(self.seed, f"fresh_chains/{split} chains"))
            purpose = f"fresh_chains/{split} tokens"
            tokens_NT = chain_tokens(chains_NVV, np.arange(count), self.sequence_length, self.seed, purpose)
            Split.write(folder, split, tokens_NT)
        facts = {"random_nats": math.log(self.num_states), "chains": f"{self.rows}, one a sequence"}
        facts |= NOTHING_TO_SELECT
        facts |= mean_and_error("bigram_nats", next_token_loss(self.laws(tokens_NT)["bigram"], tokens_NT))
        write_json(folder / "facts.json", facts)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped; the bigram predictor is its exact floor where rows are Dirichlet."""
        facts, val = read_json(folder / "facts.json"), Split.open(folder, "val")
        # Computed here, not read: in files of earlier versions the unigram prior fitted worse.
        loss_NT = next_token_loss(self.laws(val.tokens_NT)["unigram"], np.asarray(val.tokens_NT, dtype=np.int64))
        facts |= mean_and_error("unigram_nats", loss_NT)
        facts["unigram_concentration"] = self.unigram_concentration
        references = {name: facts[f"{name}_nats"] for name in ("random", "unigram", "bigram")}
        if self.rows == "dirichlet":
            references["floor"] = references["bigram"]
        return Corpus(
            name="fresh_chains",
            train=Split.open(folder, "train"),
            val=val,
            vocab_size=self.num_states,
            topic_names=("one chain a sequence",),
            reference_nats=references,
            facts=facts,
            oracle=self if self.rows == "dirichlet" else None,
        )

    def laws(self, tokens_NT: np.ndarray) -> dict[str, np.ndarray]:
        """The laws of the next token by the in-context predictors, each [N, T-1, V]."""
        tokens_NT = np.asarray(tokens_NT, dtype=np.int64)
        return {
            "unigram": unigram_law(tokens_NT, self.num_states, self.unigram_concentration),
            "bigram": bigram_law(tokens_NT, self.num_states, self.concentration),
        }

    @cached_property
    def unigram_concentration(self) -> float:
        """The concentration of the unigram predictor's Dirichlet prior, which resembles the chains' stationary laws."""
        return unigram_concentration(self.draw_chains)

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss [N, T-1] in nats of the Bayes predictor of Dirichlet chains, by bigrams in context.

        The posterior [N, T, 1] of the one topic is 1.
        """
        return next_token_loss(self.laws(tokens_NT)["bigram"], tokens_NT), np.ones((*tokens_NT.shape, 1))

    def draw_chains(self, count: int, draws: np.random.Generator) -> np.ndarray:
        """Transition tables [N, V, V], float32."""
        chains_NVV = draws.dirichlet(np.full(self.num_states, self.concentration), (count, self.num_states))
        chains_NVV = np.maximum(chains_NVV, 1e-9)  # a row without an exact zero can be balanced
        for _ in range(_MOST_ROUNDS if self.rows == "doubly_stochastic" else 0):
            chains_NVV /= chains_NVV.sum(1, keepdims=True)
            sums_NV = chains_NVV.sum(2, keepdims=True)
            chains_NVV /= sums_NV
            if np.abs(sums_NV - 1).max() < _BALANCE_TOLERANCE:
                break
        else:
            assert self.rows == "dirichlet", "chains could not be balanced"
        return chains_NVV.astype(np.float32)
