"""Corpora of real text, whole: from a file to packed, labelled tokens, and through every interruption."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from transformers import AutoTokenizer

from headdyn.core.settings import ConfigError
from headdyn.core.settings import build as build_settings
from headdyn.core.store import Store
from headdyn.data.corpus import Corpus, corpus_recipe
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.text import build
from headdyn.data.text.corpus import LocalText
from tests.data.text.small_text import jsonl, planted

COUNT, TOPICS = 300, 3


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """The null of the silhouette is test_text_topics.py's subject; here it only costs time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.clusters, "_NULL_DRAWS", 3)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LocalText:
    texts, topics = planted(COUNT, TOPICS)
    texts[200], texts[201] = texts[50], texts[51] + " Added."
    path = jsonl(tmp_path_factory.mktemp("text") / "news.jsonl", texts, topics)
    return LocalText(
        path=str(path),
        vocab_size=400,
        sequence_length=48,
        num_topics=TOPICS,
        train_sequences=None,
        val_sequences=None,
        embedding="tfidf",
        seed=0,
    )


@pytest.fixture(scope="module")
def folder(settings: LocalText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    settings.build(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(settings: LocalText, folder: Path) -> Corpus:
    return settings.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_left_in_the_folder(folder: Path) -> None:
    splits = {f"{split}_{name}.npy" for split in ("train", "val") for name in ("tokens", "topics", "documents")}
    assert set(contents(folder)) == splits | {
        "facts.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_the_corpus(corpus: Corpus, settings: LocalText, folder: Path) -> None:
    for split in (corpus.train, corpus.val):
        assert split.documents_NT is not None
        assert split.tokens_NT.shape == split.topics_NT.shape == split.documents_NT.shape == (len(split), 48)
        assert (split.tokens_NT.dtype, split.topics_NT.dtype, split.documents_NT.dtype) == ("uint16", "uint8", "uint16")
        assert isinstance(split.tokens_NT, np.memmap) and split.tokens_NT.max() < corpus.vocab_size == 400
        same_NT = split.documents_NT[:, 1:] == split.documents_NT[:, :-1]
        assert (split.topics_NT[:, 1:] == split.topics_NT[:, :-1])[same_NT].all()  # a document has one topic
    facts = corpus.facts
    assert facts["documents_read"] == COUNT and facts["documents_with_given_topic"] == COUNT
    assert (facts["exact_duplicates"], facts["near_duplicates"]) == (1, 1)
    assert facts["train_documents"] == 268 and facts["val_documents"] == 30  # a tenth of 298
    assert facts["given_adjusted_rand"] > 0.95 and facts["given_adjusted_rand_p"] == 0.001
    assert facts["silhouette"] > facts["silhouette_null_p95"]
    assert sum(facts["topic_documents"]) == 298 and len(corpus.topic_names) == corpus.num_topics == TOPICS
    assert corpus.topic_names[1] == "1 " + " ".join(facts["topic_terms"][1][:3])
    lines = corpus.reference_nats
    assert list(lines) == ["random", "unigram", "bigram", "trigram"] and lines["random"] == math.log(400)
    assert lines["random"] > lines["unigram"] > lines["bigram"] > lines["trigram"] > 0
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert not corpus.mask_documents and replace(settings, mask_documents=True).open(folder).mask_documents


def test_tokens_read_as_the_documents_and_carry_their_topic(settings: LocalText, tmp_path: Path) -> None:
    """Whole documents found in the packed text are the file's, in one split only, with the topic planted in them."""
    longer = replace(settings, sequence_length=480)  # pieces longer than most documents
    longer.build(tmp_path)
    corpus = longer.open(tmp_path)
    texts, planted_topics = planted(COUNT, TOPICS)
    topic_of = dict(zip(texts, planted_topics, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    found: dict[str, set[str]] = {}
    ours, theirs = [], []
    for name, split in (("train", corpus.train), ("val", corpus.val)):
        found[name] = set()
        for tokens_T, topics_T in zip(split.tokens_NT, split.topics_NT, strict=True):
            ends = np.flatnonzero(tokens_T == 0)
            for begin, end in zip(ends[:-1] + 1, ends[1:], strict=True):
                text = tokenizer.decode(tokens_T[begin:end].tolist())
                if text in topic_of:
                    found[name].add(text)
                    ours.append(topics_T[begin])
                    theirs.append(topic_of[text])
    assert len(found["train"]) > 100 and len(found["val"]) > 10 and not found["train"] & found["val"]
    assert adjusted_rand_score(ours, theirs) > 0.9


def test_the_same_settings_give_the_same_files(settings: LocalText, folder: Path, tmp_path: Path) -> None:
    settings.build(tmp_path)
    assert contents(tmp_path) == contents(folder)
    other = tmp_path / "other"
    other.mkdir()
    replace(settings, seed=1).build(other)
    assert contents(other)["train_tokens.npy"] != contents(folder)["train_tokens.npy"]


STEPS = (
    "store_documents", "find_duplicates", "Tfidf", "embed", "clusters.cluster", "clusters.quality", "train_tokenizer",
    "save_tokenizer", "tokenize", "pack", "losses_nats", "write_json",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_build_goes_on_after_an_interruption(
    settings: LocalText, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Through the store, stopped right after each step's work and before its marker; then run to the end."""
    module = build.clusters if "." in step else build
    name = step.rpartition(".")[2]
    real: Callable[..., Any] = getattr(module, name)
    done: list[str] = []

    def stopped(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        raise KeyboardInterrupt

    store = Store(tmp_path)
    recipe = corpus_recipe(settings)
    monkeypatch.setattr(module, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        store.get("corpus", recipe, settings.build, resumable=settings.resumable)
    monkeypatch.setattr(module, name, real)
    once = build.once
    monkeypatch.setattr(build, "once", lambda at, what, work: once(at, what, lambda: done.append(what) or work()))
    entry = store.get("corpus", recipe, settings.build, resumable=settings.resumable)
    files = contents(entry.path)
    del files["manifest.json"]
    assert files == contents(folder)
    order = ["reading", "duplicates", "topics", "tokenizer", "packing", "reference lines"]
    assert done == order[len(order) - len(done) :] and (len(done) == 6) == (step == "store_documents")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vocab_size": 256}, "data.vocab_size=256 must be at least 257"),
        ({"vocab_size": 65537}, "data.vocab_size=65537 must be at most 65536"),
        ({"num_topics": 1}, "data.num_topics=1 must be at least 2"),
        ({"num_topics": 257}, "data.num_topics=257 must be at most 256"),
        ({"sequence_length": 23}, "data.sequence_length=23 .* 24 or more"),
        ({"pieces_per_sequence": 1}, "data.pieces_per_sequence=1 must be at least 2"),
        ({"train_sequences": 0}, "data.train_sequences=0 must be at least 1 or null"),
        ({"val_sequences": -1}, "data.val_sequences=-1 must be at least 1 or null"),
        ({"val_share": 0.0}, "data.val_share=0.0 must be above 0"),
        ({"val_share": 0.6}, "data.val_share=0.6 must be at most 0.5"),
        ({"near_duplicate_jaccard": 0.5}, "data.near_duplicate_jaccard=0.5 must be at least 0.7 or null"),
        ({"topics": "nice"}, "data.topics='nice' must be one of clusters, given"),
        ({"embedding": "bert"}, "data.embedding='bert' must be one of auto, minilm, tfidf"),
        ({"seed": -1}, "data.seed=-1 must be at least 0"),
        ({"txt_documents": "line"}, "data.txt_documents='line' must be one of file, blank_lines"),
        ({"documents": 1}, "data.documents=1 must be at least 2 or null"),
        ({"encoding": "utf-9"}, "data.encoding='utf-9'"),
        ({"path": "nowhere.jsonl"}, "data.path=nowhere.jsonl does not exist"),
    ],
)
def test_impossible_settings(settings: LocalText, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_settings(LocalText, {**asdict(settings), **wrong}, "data")
    with pytest.raises(ValueError):
        replace(settings, **wrong)


def refusal(settings: LocalText, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(ValueError) as caught:
        settings.build(folder)
    assert "\n" not in str(caught.value)
    (folder / "counted").mkdir()
    assert str(caught.value) in build.sequences_of(settings, settings.reader(), folder / "counted")[1]
    return str(caught.value)


def test_sequences_are_counted_as_they_will_be_packed(settings: LocalText, tmp_path: Path) -> None:
    for number, changed in enumerate((settings, replace(settings, sequence_length=100, train_sequences=7))):
        built, counted = tmp_path / f"built{number}", tmp_path / f"counted{number}"
        built.mkdir()
        counted.mkdir()
        changed.build(built)
        corpus = changed.open(built)
        sizes = {"train": len(corpus.train), "val": len(corpus.val)}
        assert build.sequences_of(changed, changed.reader(), counted) == (sizes, [])


def test_one_document_leaves_none_for_training(settings: LocalText, tmp_path: Path) -> None:
    """All that is wrong is said, and nothing fails for want of training documents."""
    one = replace(settings, path=str(jsonl(tmp_path / "one.jsonl", ["a short text"])))
    message = "of 1 documents 1 differ and 0 are left for training"
    assert message in refusal(one, tmp_path / "a")


def test_given_topics_can_be_the_labels(settings: LocalText, tmp_path: Path) -> None:
    given = replace(settings, topics="given")
    given.build(tmp_path)
    corpus = given.open(tmp_path)
    assert set(corpus.topic_names) == {"planted 0", "planted 1", "planted 2"}
    assert sum(corpus.facts["topic_documents"]) == 298 and "silhouette" not in corpus.facts
    message = refusal(replace(given, num_topics=4), tmp_path / "four")
    assert "come with 3 topics and not data.num_topics=4; set data.num_topics=3" in message
    bare = jsonl(tmp_path / "bare.jsonl", planted(60, 2)[0])
    message = refusal(replace(given, path=str(bare), num_topics=2), tmp_path / "none")
    assert "60 of 60 documents come without a topic" in message and "data.topic_column" in message


def test_documents_no_corpus_can_be_made_of(settings: LocalText, tmp_path: Path) -> None:
    few = replace(settings, path=str(jsonl(tmp_path / "few.jsonl", planted(3, 3)[0])))
    message = refusal(few, tmp_path / "a")
    assert all(w in message for w in ("data.num_topics=3", "of 3 documents 3 differ", "2 are left for training"))
    same = replace(settings, path=str(jsonl(tmp_path / "same.jsonl", ["the very same text"] * 50)))
    assert "of 50 documents 1 differ" in refusal(same, tmp_path / "b")
    one = tmp_path / "one.txt"
    one.write_text("\n\n".join(planted(40, 3)[0]))
    assert "data.txt_documents=blank_lines" in refusal(replace(settings, path=str(one)), tmp_path / "c")
    replace(settings, path=str(one), txt_documents="blank_lines", vocab_size=300).build(tmp_path)
    assert "data.vocab_size=9000 is more than" in refusal(replace(settings, vocab_size=9000), tmp_path / "d")
    assert "less than one sequence" in refusal(replace(settings, sequence_length=4096), tmp_path / "e")
    blank = replace(settings, path=str(jsonl(tmp_path / "blank.jsonl", [" "] * 5)))
    assert "all 5 records lack text" in refusal(blank, tmp_path / "f")


def test_a_corpus_is_keyed_by_what_its_files_hold(settings: LocalText, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy.jsonl"
    elsewhere.write_bytes(Path(settings.path).read_bytes())
    key = corpus_recipe(settings)
    assert key == corpus_recipe(replace(settings, path=str(elsewhere)))
    assert key == corpus_recipe(replace(settings, mask_documents=True))
    assert key != corpus_recipe(replace(settings, seed=1))
    elsewhere.write_text(elsewhere.read_text().replace(".", "!", 1))
    assert key != corpus_recipe(replace(settings, path=str(elsewhere)))
    assert key["source"] == "headdyn.data.text.corpus.LocalText" and json.dumps(key)


def test_settings_are_checked_without_heavy_imports() -> None:
    heavy = ("torch", "sklearn", "pyarrow", "scipy", "datasets", "tokenizers", "transformers", "sentence_transformers")
    code = f"import sys, headdyn.data.text.corpus; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_a_model_without_a_tokenizer_is_refused_before_the_texts_are_read(settings: LocalText) -> None:
    with pytest.raises(ValueError, match=r"model.name=m has no tokenizer, and text needs one"):
        settings.in_tokens_of(ModelTokens("m", 29))
