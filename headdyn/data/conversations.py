"""Conversations: speakers take turns symbol by symbol, each in a language of its own (science.md §18).

A predictor has to select among the earlier symbols here: a speaker's language shows in that speaker's symbols alone.
Letters: N sequences, T tokens, M symbols of a sequence, P speakers, S languages (the topics), V symbols.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator, stream_key
from headdyn.core.settings import Count, settings
from headdyn.data.conversation_filter import ConversationFilter, Speaker
from headdyn.data.corpus import Corpus, NumTopics, Seed, Split
from headdyn.data.fresh_languages import FreshFilter, concentration, urn_chains
from headdyn.data.lines import line_facts, mean_and_error, mixture, position_only, reference_nats
from headdyn.data.markov import AliasSampler, matched_chains, sample_tokens, stationary_law, unmatched_chains

_MOST_ASSIGNMENTS = 1000  # the filter has a weight for each
_REFERENCE_SEQUENCES = 2000  # held-out sequences on which the lines are computed


@settings
class Conversations:
    """A corpus of conversations; a conf/data option. The topic of every token is its speaker's language.

    The next symbol is by the same speaker with probability 1 − `switch`, else by another one, chosen uniformly; it
    continues the speaker's language from that speaker's own last symbol. `speaker` says how tokens show who speaks.
    `marker`: a token that names the speaker stands before each symbol. `tag`: each token gives speaker and symbol.
    `announced`: each token gives speaker, next speaker and symbol. `hidden`: tokens are symbols alone, of two speakers.
    With `evidence=transitions` all languages share the uniform unigram law; with `unigrams` each has its own, around
    which its rows vary by `row_spread`. Languages are divided into `num_domains` sets of equal size; a sequence uses
    one set, and `data_ordering=topic` sorts by sets. With `chains=fresh` every sequence has new languages, to be learnt
    in context, and a token's topic is its speaker. `target_gap_nats` is ln V minus a language's entropy rate.
    """

    speaker: Speaker
    num_speakers: Annotated[int, Field(ge=2, le=16)]
    switch: Annotated[float, Field(ge=0, le=1)]
    evidence: Literal["transitions", "unigrams"]
    num_symbols: Annotated[int, Field(ge=2, le=4096)]
    num_topics: NumTopics
    num_domains: Count = 1
    sequence_length: Annotated[int, Field(ge=4)]
    train_sequences: Count
    val_sequences: Count
    target_gap_nats: Annotated[float, Field(gt=0)]
    row_spread: Annotated[float, Field(ge=0, le=10)] = 1.0
    chains: Literal["fixed", "fresh"] = "fixed"
    seed: Seed

    def __post_init__(self) -> None:
        if self.chains == "fresh" and (self.speaker == "hidden" or self.num_domains > 1):
            key = f"data.num_domains={self.num_domains}" if self.num_domains > 1 else "data.speaker=hidden"
            raise ValueError(f"{key} needs languages that sequences share; set data.chains=fixed")
        if self.vocab_size > 2**16:  # stored as uint16
            raise ValueError(
                f"data.num_symbols={self.num_symbols} and data.num_speakers={self.num_speakers} make {self.vocab_size} "
                f"tokens under data.speaker={self.speaker}, over 65536; lower one"
            )
        speakers, topics = f"data.num_speakers={self.num_speakers}", f"data.num_topics={self.num_topics}"
        if self.num_topics % self.num_domains:
            raise ValueError(f"data.num_domains={self.num_domains} must divide {topics}: domains are of one size")
        assignments = self.num_domains * math.perm(self.num_topics // self.num_domains, self.num_speakers)
        if self.chains == "fresh":
            assignments = 1  # each speaker has a new language; `num_topics` only changes which random numbers are drawn
        if not assignments:
            in_domains = f" in {self.num_domains} domains" if self.num_domains > 1 else ""
            fewest = self.num_domains * math.factorial(self.num_speakers)  # assignments with just enough languages
            change = "raise num_topics" if fewest <= _MOST_ASSIGNMENTS else "lower num_speakers"
            raise ValueError(f"{speakers} needs a language for each speaker, but {topics}{in_domains}; {change}")
        if assignments > _MOST_ASSIGNMENTS:
            raise ValueError(
                f"{speakers} and {topics} allow {assignments} assignments of languages to speakers, over "
                f"{_MOST_ASSIGNMENTS}; lower one"
            )
        if self.speaker == "hidden" and self.num_speakers != 2:
            raise ValueError(f"{speakers} must be 2 under data.speaker=hidden, where the floor is exact for two alone")
        if self.speaker == "marker" and self.sequence_length % 2:
            raise ValueError(
                f"data.sequence_length={self.sequence_length} must be even, for pairs of marker and symbol"
            )
        if self.target_gap_nats >= math.log(self.num_symbols):
            raise ValueError(
                f"data.target_gap_nats={self.target_gap_nats} must lie below ln V = {math.log(self.num_symbols):.3f} "
                f"nats for data.num_symbols={self.num_symbols}; half of it is plenty"
            )

    @property
    def vocab_size(self) -> int:
        """The number of different tokens."""
        if self.speaker == "marker":
            return self.num_symbols + self.num_speakers
        return self.num_symbols * self.num_speakers ** {"hidden": 0, "tag": 1, "announced": 2}[self.speaker]

    def build(self, folder: Path) -> None:
        """Draw languages and conversations, and compute the reference losses (lines.py).

        Writes {train,val}_tokens.npy, {train,val}_topics.npy, facts.json and, for fixed chains, transitions.npy
        (float32, SVV).
        """
        sampler = None
        if self.chains == "fixed":
            rng = generator(self.seed, "conversations/languages")
            arguments = self.num_symbols, self.num_topics, self.target_gap_nats, rng
            if self.evidence == "transitions":
                transitions_SVV = matched_chains(*arguments)
            else:
                transitions_SVV = unmatched_chains(*arguments, self.row_spread)
            np.save(folder / "transitions.npy", transitions_SVV)
            sampler = AliasSampler(transitions_SVV)
        for split, count in (("train", self.train_sequences), ("val", self.val_sequences)):
            speakers_NM, symbols_NM, topics_NM = self._draw(sampler, split, count)
            tokens_NT = self._tokens(speakers_NM, symbols_NM).astype(np.uint16)
            Split.write(folder, split, tokens_NT, np.repeat(topics_NM, 2 if self.speaker == "marker" else 1, axis=1))
        held_out = (array_NM[:_REFERENCE_SEQUENCES] for array_NM in (speakers_NM, symbols_NM, topics_NM))
        write_json(folder / "facts.json", self._facts(self._filter(folder), *held_out))

    def open(self, folder: Path) -> Corpus:
        facts = read_json(folder / "facts.json")
        fixed, domain_S = self.chains == "fixed", np.arange(self.num_topics) * self.num_domains // self.num_topics
        kind, count = ("language", self.num_topics) if fixed else ("speaker", self.num_speakers)
        return Corpus(
            name="conversations",
            train=Split.open(folder, "train"),
            val=Split.open(folder, "val"),
            vocab_size=self.vocab_size,
            topic_names=tuple(f"{kind} {number}" for number in range(count)),
            reference_nats=reference_nats(facts),
            facts=facts,
            oracle=self._filter(folder),
            domain_of_topic=domain_S if self.num_domains > 1 else None,
        )

    def _filter(self, folder: Path) -> ConversationFilter:
        speaking = self.speaker, self.num_speakers, self.switch
        if self.chains == "fixed":
            return ConversationFilter(np.load(folder / "transitions.npy", mmap_mode="r"), *speaking, self.num_domains)
        mean_SVV = np.full((self.num_speakers, self.num_symbols, self.num_symbols), 1 / self.num_symbols)
        return FreshFilter(mean_SVV, *speaking, alpha=self._alpha, by_context=self.evidence == "transitions")

    @property
    def _alpha(self) -> float:
        return concentration(self.num_symbols, self.target_gap_nats)

    @property
    def _no_speaker_blind_line(self) -> str | None:
        """Why the loss of exact inference that does not know who speaks is not computed; None where it is."""
        if self.chains == "fresh":
            return "there is no exact law for it where every sequence has languages of its own"
        if self.speaker == "hidden":
            return "it is the floor here"
        return "there is an exact law only for two speakers" if self.num_speakers > 2 else None

    def _draw(self, sampler: AliasSampler | None, split: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Speakers, symbols and languages, each [N, M]; with `speaker=announced` speakers have a further column, for
        whom the last token announces.

        For each speaker a chain of M symbols is drawn; each turn of the speaker takes its next symbol.
        """
        speakers, length = self.num_speakers, self.sequence_length // (2 if self.speaker == "marker" else 1)
        rng = generator(self.seed, f"conversations/{split} speakers")
        domain_size = self.num_topics // self.num_domains
        languages_NP = rng.random((count, domain_size)).argsort(1)[:, :speakers]
        turns = length + (self.speaker == "announced")
        step_NM = (rng.random((count, turns)) < self.switch) * rng.integers(1, speakers, size=(count, turns))
        step_NM[:, 0] = rng.integers(speakers, size=count)
        speakers_NM = step_NM.cumsum(1) % speakers
        if self.num_domains > 1:
            languages_NP += domain_size * rng.integers(self.num_domains, size=(count, 1))
        chain_NPM = np.empty((count, speakers, length), np.uint16)
        name = f"conversations/{split} symbols"
        if sampler is None:
            languages_NP = np.broadcast_to(np.arange(speakers), (count, speakers))
            by_context, rng = self.evidence == "transitions", generator(self.seed, name)
            chain_RM = urn_chains(count * speakers, length, self.num_symbols, self._alpha, by_context, rng)
            chain_NPM[:] = chain_RM.reshape(chain_NPM.shape)
        else:
            topics_NPM = np.repeat(languages_NP[..., None], length, axis=2).astype(np.uint8)
            flat_topics, flat_chains = topics_NPM.reshape(-1, length), chain_NPM.reshape(-1, length)
            sample_tokens(sampler, flat_topics, stream_key(self.seed, name), flat_chains)
        turns_NPM = (speakers_NM[:, None] == np.arange(speakers)[:, None]).cumsum(2) - 1
        rows_N1, speaking_NM = np.arange(count)[:, None], speakers_NM[:, :length]
        turn_NM = turns_NPM[rows_N1, speaking_NM, np.arange(length)]
        symbols_NM = chain_NPM[rows_N1, speaking_NM, turn_NM].astype(np.int64)
        return speakers_NM, symbols_NM, languages_NP[rows_N1, speaking_NM]

    def _tokens(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> np.ndarray:
        if self.speaker == "marker":
            return np.stack([self.num_symbols + speakers_NM, symbols_NM], axis=2).reshape(len(symbols_NM), -1)
        if self.speaker == "announced":
            speakers_NM = speakers_NM[:, :-1] * self.num_speakers + speakers_NM[:, 1:]
        return symbols_NM + (0 if self.speaker == "hidden" else speakers_NM * self.num_symbols)

    def _facts(
        self, exact: ConversationFilter, speakers_NM: np.ndarray, symbols_NM: np.ndarray, topics_NM: np.ndarray
    ) -> dict[str, Any]:
        """The lines in nats per token, what selecting by speaker is worth (`line_facts`), and further facts."""
        facts: dict[str, Any] = {
            "chance_accuracy": 1 / len(exact.transitions_SVV),
            "held_out_sequences": len(symbols_NM),
        }
        uniform_NM = np.full(symbols_NM.shape, math.log(self.num_symbols))
        prior_SV = np.stack([stationary_law(chain_VV) for chain_VV in exact.transitions_SVV])
        prior_SV /= prior_SV.sum(0)  # probability of each language given a symbol
        lines = {"random": uniform_NM, "mixture": uniform_NM.copy()}
        if isinstance(exact, FreshFilter):
            lines["position_only"], facts["position_only_is"] = exact.pooled(speakers_NM, symbols_NM)
        else:
            before_NM, emission_NMS = exact.emission(speakers_NM, symbols_NM)
            prior_NMS = np.where(before_NM[..., None] < 0, 1 / self.num_topics, prior_SV.T[before_NM])
            lines["mixture"] = mixture(prior_NMS, emission_NMS)
            lines["position_only"], facts["position_only_is"] = position_only(prior_NMS, emission_NMS)
        if (reason := self._no_speaker_blind_line) is not None:
            facts["speaker_blind_absent"] = reason
        else:
            lines["speaker_blind"] = uniform_NM.copy()
            lines["speaker_blind"][:, 1:] = exact.without_speakers(symbols_NM)[0]
        losses = {name: exact.token_losses(loss_NM, speakers_NM) for name, loss_NM in lines.items()}
        losses["floor"], posterior_NTS = exact.filter(self._tokens(speakers_NM, symbols_NM))
        repeats = posterior_NTS.shape[1] // topics_NM.shape[1]
        right_NT = posterior_NTS.argmax(2) == np.repeat(topics_NM, repeats, axis=1)
        return facts | mean_and_error("bayes_topic_accuracy", right_NT) | line_facts(losses)
