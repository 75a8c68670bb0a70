"""The tokens of a model that is already trained, in which its texts, prompts and random sequences are written."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ModelTokens:
    """A checkpoint's tokens, known before its weights are read.

    `vocab_size` is that of the embedding, which is often padded beyond the tokenizer's. `tokenizer` is one of
    transformers, or None if the checkpoint has none. `max_positions` is the number of learned positions, or 0. Raises
    ValueError if the tokenizer has tokens beyond the embedding.
    """

    name: str
    vocab_size: int
    max_positions: int = 0
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if (last := self.regular.max()) >= self.vocab_size:
            raise ValueError(
                f"model.name={self.name}: its tokenizer has token {last}, but its vocabulary ends at "
                f"{self.vocab_size - 1}; put the tokenizer that belongs to the weights beside them"
            )

    @cached_property
    def regular(self) -> np.ndarray:
        """The ids of all tokens but special ones, ascending; without a tokenizer those of the whole vocabulary."""
        if self.tokenizer is None:
            return np.arange(self.vocab_size)
        return np.array(sorted({*self.tokenizer.get_vocab().values()} - {*self.tokenizer.added_tokens_decoder}))

    @cached_property
    def begin(self) -> int | None:
        """The token that the tokenizer puts before every text, such as Llama's <s>, or None."""
        if self.tokenizer is None:
            return None
        bare, whole = (self.tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        return whole[0] if whole[0] != bare[0] else None

    @property
    def end(self) -> int | None:
        """The end-of-text token, or None."""
        return None if self.tokenizer is None else self.tokenizer.eos_token_id

    def require_text(self) -> None:
        """Raise ValueError if texts cannot be written in these tokens."""
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            lacks = "no tokenizer" if self.tokenizer is None else "no fast tokenizer (tokenizer.json)"
            raise ValueError(
                f"model.name={self.name} has {lacks}, and text needs one; put it beside the weights, or choose "
                "data=repeated_tokens"
            )

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer as one of the library `tokenizers`, without truncation. Raises ValueError if there is none."""
        from tokenizers import Tokenizer

        self.require_text()
        backend = self.tokenizer.backend_tokenizer
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # a special token spelt out in a document is ordinary text
        return tokenizer

    def require_length(self, sequence_length: int) -> None:
        """Raise ValueError for sequences that are longer than the model's learned positions."""
        if 0 < self.max_positions < sequence_length:
            raise ValueError(
                f"data.sequence_length={sequence_length} is longer than the {self.max_positions} positions that "
                f"model.name={self.name} has learnt; set data.sequence_length={self.max_positions} or less"
            )

    def recipe(self) -> dict[str, Any]:
        """Everything about these tokens on which a corpus depends, for the store's key."""
        vocabulary = None if self.tokenizer is None else sorted(self.tokenizer.get_vocab().items())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = json.dumps([vocabulary, None if backend is None else backend.to_str()])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"vocab_size": self.vocab_size, "tokenizer": digest, "begin": self.begin, "end": self.end}
