"""Exact inference for conversations: which language each speaker has and, if hidden, who speaks (science.md §18).

Letters: N sequences, T tokens, M symbols of a sequence, P speakers, S languages (the topics), V symbols, A assignments
of distinct languages of a domain to speakers, J places where the other speaker's last symbol may be.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

Speaker = Literal["marker", "tag", "announced", "hidden"]

_CHUNK_SEQUENCES = 128  # filtered at once if speakers are hidden, where each sequence has a state [J, A]


@dataclass(frozen=True, eq=False)
class ConversationFilter:
    """The exact filter of conversations, over the speakers' languages and, if speakers are hidden, over who spoke.

    The fields are settings of `Conversations`; a language is its transition probabilities, `transitions_SVV`.
    """

    transitions_SVV: np.ndarray
    speaker: Speaker
    num_speakers: int
    switch: float
    num_domains: int = 1

    def assignments(self, speakers: int) -> np.ndarray:
        """All assignments of languages to speakers, [A, P]: every ordered tuple of distinct languages of one domain."""
        size = len(self.transitions_SVV) // self.num_domains
        domains = (range(first, first + size) for first in range(0, len(self.transitions_SVV), size))
        return np.array([languages for domain in domains for languages in permutations(domain, speakers)])

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Next-token loss [N, T-1] in nats, and the topic posterior [N, T, S] of token t given x_0..x_t.

        Raises ValueError for tokens that are no such conversation.
        """
        tokens_NT, size = np.asarray(tokens_NT, np.int64), self.transitions_SVV.shape[1]
        speakers_NM, symbols_NM = np.divmod(tokens_NT, size)
        if self.speaker == "marker":
            speakers_NM, symbols_NM = tokens_NT[:, 0::2] - size, tokens_NT[:, 1::2]
        is_well_formed = speakers_NM.shape == symbols_NM.shape
        if self.speaker == "announced":
            speakers_NM, next_NM = np.divmod(speakers_NM, self.num_speakers)
            is_well_formed = np.array_equal(speakers_NM[:, 1:], next_NM[:, :-1])
            speakers_NM = np.concatenate([speakers_NM, next_NM[:, -1:]], axis=1)
        speakers = 1 if self.speaker == "hidden" else self.num_speakers
        in_range = [((values >= 0) & (values < n)).all() for values, n in ((speakers_NM, speakers), (symbols_NM, size))]
        if not is_well_formed or not all(in_range):
            raise ValueError(f"these {tokens_NT.shape[1]} tokens are no conversation with data.speaker={self.speaker}")
        if self.speaker == "hidden":
            return self.without_speakers(symbols_NM)
        loss_NM, posteriors = self.with_speakers(speakers_NM, symbols_NM)
        chosen = posteriors if self.speaker == "marker" else posteriors[:, :, 1:]
        return self.token_losses(loss_NM, speakers_NM), chosen.reshape(*tokens_NT.shape, -1)

    def token_losses(self, loss_NM: np.ndarray, speakers_NM: np.ndarray) -> np.ndarray:
        """The losses of all tokens but the first [N, T-1]: the symbols' losses, plus −ln p of the speakers shown.

        With `speaker=announced`, `speakers_NM` has one column more than the symbols: the speaker whom the last token
        announces.
        """
        if self.speaker == "hidden":
            return loss_NM[:, 1:]
        same_NM = speakers_NM[:, 1:] == speakers_NM[:, :-1]
        with np.errstate(divide="ignore"):
            speaking_NM = -np.log(np.where(same_NM, 1 - self.switch, self.switch / (self.num_speakers - 1)))
        if self.speaker == "tag":
            return loss_NM[:, 1:] + speaking_NM
        if self.speaker == "announced":
            return loss_NM[:, 1:] + speaking_NM[:, 1:]
        both_NM2 = np.stack([loss_NM, np.pad(speaking_NM, ((0, 0), (0, 1)))], axis=2)
        return both_NM2.reshape(len(loss_NM), -1)[:, :-1]

    def emission(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same speaker's symbol before each symbol [N, M], and its probability in every language [N, M, S].

        A speaker's first symbol has −1 before it and is uniform. With hidden speakers the symbol before is the
        preceding one, whoever spoke it; a reply, which does not follow from it, counts as uniform.
        """
        uniform = 1 / self.transitions_SVV.shape[1]
        if self.speaker == "hidden":
            before_NM = np.pad(symbols_NM[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            going_on_SNM = (1 - self.switch) * self.transitions_SVV[:, before_NM, symbols_NM].astype(np.float64)
            emission_SNM = going_on_SNM + self.switch * uniform
        else:
            last_NP, rows = np.full((len(symbols_NM), self.num_speakers), -1), np.arange(len(symbols_NM))
            before_NM = np.empty_like(symbols_NM)
            for m, speakers_N in enumerate(speakers_NM.T[: symbols_NM.shape[1]]):
                before_NM[:, m] = last_NP[rows, speakers_N]
                last_NP[rows, speakers_N] = symbols_NM[:, m]
            emission_SNM = self.transitions_SVV[:, before_NM, symbols_NM].astype(np.float64)
        emission_SNM[:, before_NM < 0] = uniform
        return before_NM, np.moveaxis(emission_SNM, 0, 2)

    def with_speakers(self, speakers_NM: np.ndarray, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each symbol's loss [N, M], and the posterior of its speaker's language before and after it [N, M, 2, S]."""
        languages_AP = self.assignments(self.num_speakers)
        has_language_APS = (languages_AP[..., None] == np.arange(len(self.transitions_SVV))).astype(float)
        emission_NMS, rows = self.emission(speakers_NM, symbols_NM)[1], np.arange(len(symbols_NM))
        weight_NA = np.full((len(rows), len(languages_AP)), 1 / len(languages_AP))
        loss_NM, posteriors = np.empty(symbols_NM.shape), np.empty((*symbols_NM.shape, 2, len(self.transitions_SVV)))
        for m, speakers_N in enumerate(speakers_NM.T[: symbols_NM.shape[1]]):
            posteriors[:, m, 0] = np.einsum("na,aps->nps", weight_NA, has_language_APS)[rows, speakers_N]
            weight_NA *= np.take_along_axis(emission_NMS[:, m], languages_AP[:, speakers_N].T, 1)
            loss_NM[:, m] = -np.log(weight_NA.sum(1))
            weight_NA /= weight_NA.sum(1, keepdims=True)
            posteriors[:, m, 1] = np.einsum("na,aps->nps", weight_NA, has_language_APS)[rows, speakers_N]
        return loss_NM, posteriors

    def without_speakers(self, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For two hidden speakers: the losses [N, M-1] of all symbols but the first, and all posteriors [N, M, S]."""
        chunks = range(0, len(symbols_NM), _CHUNK_SEQUENCES)
        losses, posteriors = zip(*(self._hidden(symbols_NM[i : i + _CHUNK_SEQUENCES]) for i in chunks), strict=True)
        return np.concatenate(losses), np.concatenate(posteriors)

    def _hidden(self, symbols_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The state is the place J of the other speaker's last symbol (nowhere, 0, 1, …) and both speakers' languages.

        After x_t either the present speaker goes on, and J stays, or the other one replies, and J becomes t.
        """
        (count, length), (topics, size, _) = symbols_NM.shape, self.transitions_SVV.shape
        present_A, other_A = self.assignments(2).T
        swapped_A = np.lexsort((present_A, other_A))  # for (a, b) the index of (b, a)
        has_language_SA = (present_A == np.arange(topics)[:, None]).astype(float)
        weight_JAN = np.zeros((length, len(present_A), count))
        weight_JAN[0] = 1 / len(present_A)
        loss_NM, posterior_NMS = np.empty((count, length - 1)), np.full((count, length, topics), 1 / topics)
        for t in range(length - 1):
            going_on_SN = self.transitions_SVV[:, symbols_NM[:, t], symbols_NM[:, t + 1]]
            replying_SJN = np.full((topics, t + 1, count), 1 / size)  # a speaker's first symbol is uniform
            replying_SJN[:, 1:] = self.transitions_SVV[:, symbols_NM[:, :t].T, symbols_NM[:, t + 1]]
            replied_AN = np.einsum("jan,ajn->an", weight_JAN[: t + 1], replying_SJN[other_A])
            weight_JAN[: t + 1] *= (1 - self.switch) * going_on_SN[present_A]
            weight_JAN[t + 1] = self.switch * replied_AN[swapped_A]
            by_pair_AN = weight_JAN[: t + 2].sum(0)
            total_N = by_pair_AN.sum(0)
            weight_JAN[: t + 2] /= total_N
            loss_NM[:, t] = -np.log(total_N)
            posterior_NMS[:, t + 1] = (has_language_SA @ by_pair_AN / total_N).T
        return loss_NM, posterior_NMS
