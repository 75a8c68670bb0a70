"""A finite mixture of Markov chains: every sequence follows one of K (Park et al. 2024, arXiv 2412.01003).

Letters as in landmarks/predictors.py.
"""

import math
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator
from headdyn.core.settings import Count, Positive, settings
from headdyn.data.corpus import Corpus, Seed, Split
from headdyn.data.lines import NOTHING_TO_SELECT, mean_and_error
from headdyn.data.markov import chain_tokens
from headdyn.studies.landmarks.predictors import (
    bigram_law,
    next_token_loss,
    retrieval_laws,
    stationary_laws,
    unigram_concentration,
    unigram_law,
)

PREDICTORS = ("unigram_retrieval", "bigram_retrieval", "unigram_inference", "bigram_inference")
_LEAST = 1e-9  # the least probability of a transition, so that logarithms are finite
_MOST_GIB = 4.0  # memory that the exact predictors of all chains may need at a time


@settings
class MarkovMixture:
    """`num_chains` chains over `num_states` symbols, rows Dirichlet(`concentration`); a sequence follows one of them.

    Chains are equally likely, and the first symbol is uniform.
    """

    num_chains: Annotated[int, Field(ge=1, le=65536)] = 16
    num_states: Annotated[int, Field(ge=2, le=64)] = 10
    concentration: Positive = 1.0
    sequence_length: Annotated[int, Field(ge=8)] = 128
    train_sequences: Count
    val_sequences: Count
    seed: Seed

    has_topics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # In float64: the chains, their logarithms and a copy of them; four weights for each sequence and chain.
        memory_gib = 8 * self.num_chains * (3 * self.num_states**2 + 4 * self.val_sequences) / 2**30
        if memory_gib > _MOST_GIB:
            raise ValueError(
                f"data.num_chains={self.num_chains} with data.num_states={self.num_states} and data.val_sequences="
                f"{self.val_sequences} hold {memory_gib:.1f} GiB at a time, over {_MOST_GIB:.0f}; lower one of them"
            )

    @property
    def table_bytes(self) -> int:
        """The size of the file of transition tables."""
        return 4 * self.num_chains * self.num_states**2

    def build(self, folder: Path) -> None:
        """Draw chains and sequences, and the losses of the exact predictors on the validation split.

        Writes {train,val}_tokens.npy, {train,val}_topics.npy (all 0: chains are too many for topics), transitions.npy
        (float32 [K, V, V]) and facts.json.
        """
        chains_KVV = self.draw_chains(self.num_chains, generator(self.seed, "markov_mixture/chains"))
        np.save(folder / "transitions.npy", chains_KVV)
        for split, count in (("train", self.train_sequences), ("val", self.val_sequences)):
            chain_N = generator(self.seed, f"markov_mixture/{split}").integers(self.num_chains, size=count)
            tokens_NT = self.draw_tokens(chains_KVV, chain_N, f"{split} tokens")
            Split.write(folder, split, tokens_NT)
        facts = {"random_nats": math.log(self.num_states), "chains": self.num_chains, **NOTHING_TO_SELECT}
        for name, law_NTV in MixtureFilter(self, chains_KVV).laws(tokens_NT).items():
            facts |= mean_and_error(f"{name}_nats", next_token_loss(law_NTV, tokens_NT))
        write_json(folder / "facts.json", facts)

    def open(self, folder: Path) -> Corpus:
        """The corpus in `folder`, memory-mapped; bigram retrieval is its exact floor."""
        facts, val = read_json(folder / "facts.json"), Split.open(folder, "val")
        mixture, tokens_NT = MixtureFilter(self, np.load(folder / "transitions.npy")), val.tokens_NT[:].astype(np.int64)
        # Computed here, not read: in files of earlier versions the unigram prior fitted worse.
        unigram_NTV = unigram_law(tokens_NT, self.num_states, mixture.unigram_concentration)
        facts |= mean_and_error("unigram_inference_nats", next_token_loss(unigram_NTV, tokens_NT))
        references = {name: facts[f"{name}_nats"] for name in ("random", *PREDICTORS)}
        return Corpus(
            name="markov_mixture",
            train=Split.open(folder, "train"),
            val=val,
            vocab_size=self.num_states,
            topic_names=("one of the chains",),
            reference_nats={**references, "floor": references["bigram_retrieval"]},
            facts=facts,
            oracle=mixture,
        )

    def draw_chains(self, count: int, draws: np.random.Generator) -> np.ndarray:
        """Transition tables [K, V, V], float32."""
        alpha_V = np.full(self.num_states, self.concentration)
        chains_KVV = np.maximum(draws.dirichlet(alpha_V, (count, self.num_states)), _LEAST)
        return (chains_KVV / chains_KVV.sum(2, keepdims=True)).astype(np.float32)

    def draw_tokens(self, chains_KVV: np.ndarray, chain_N: np.ndarray, purpose: str) -> np.ndarray:
        """One sequence of each chain in `chain_N`, uint16 [N, T]; draws of one seed differ by their `purpose`."""
        return chain_tokens(chains_KVV, chain_N, self.sequence_length, self.seed, f"markov_mixture/{purpose}")


class MixtureFilter:
    """The four exact predictors of a mixture; bigram retrieval is the Bayes predictor."""

    def __init__(self, source: MarkovMixture, chains_KVV: np.ndarray) -> None:
        self.source, chains_KVV = source, chains_KVV.astype(float)
        self.chains_KVV = chains_KVV / chains_KVV.sum(2, keepdims=True)  # without the file's float32 rounding
        self.stationary_KV = stationary_laws(self.chains_KVV)
        self.unigram_concentration = unigram_concentration(source.draw_chains)

    def laws(self, tokens_NT: np.ndarray) -> dict[str, np.ndarray]:
        """The law of the next token by each of PREDICTORS, [N, T-1, V]."""
        tokens_NT, s = np.asarray(tokens_NT, dtype=np.int64), self.source
        laws = retrieval_laws(tokens_NT, self.chains_KVV, self.stationary_KV)
        laws["unigram_inference"] = unigram_law(tokens_NT, s.num_states, self.unigram_concentration)
        laws["bigram_inference"] = bigram_law(tokens_NT, s.num_states, s.concentration)
        return {name: laws[name] for name in PREDICTORS}

    def fresh(self, count: int) -> np.ndarray:
        """Sequences [N, T], each of its own chain that is not in the mixture."""
        chains_NVV = self.source.draw_chains(count, generator(self.source.seed, "markov_mixture/fresh chains"))
        return self.source.draw_tokens(chains_NVV, np.arange(count), "fresh tokens").astype(np.int64)

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss [N, T-1] in nats of the Bayes predictor; the posterior [N, T, 1] of the one topic is 1."""
        law_NTV = self.laws(tokens_NT)["bigram_retrieval"]
        return next_token_loss(law_NTV, tokens_NT), np.ones((*tokens_NT.shape, 1))
