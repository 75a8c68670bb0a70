from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from headdyn.data.text.documents import Documents, store_documents
from headdyn.data.text.files import TextFiles
from headdyn.data.text.tokenizer import END_ID, END_OF_TEXT, load_tokenizer, save_tokenizer, tokenize, train_tokenizer
from tests.data.text.small_text import jsonl, planted

ODD = ["naïve — 日本語 🙂 \u0000", f"says {END_OF_TEXT} twice {END_OF_TEXT}", "  spaces \n\n tabs\t", "<unk>", "x"]


def stored(folder: Path, texts: list[str]) -> Documents:
    store_documents(TextFiles(path=jsonl(folder / "texts.jsonl", texts)), folder / "d")
    return Documents(folder / "d")


def test_text_comes_back_to_the_byte_and_hugging_face_reads_the_same(tmp_path: Path) -> None:
    texts = planted(200, 3)[0]
    documents = stored(tmp_path, [*texts, *ODD])
    tokenizer, learnt_bytes = train_tokenizer(documents, np.arange(200), 400, seed=0)
    assert tokenizer.get_vocab_size() == 400 and learnt_bytes == sum(len(text.encode()) for text in texts)
    save_tokenizer(tokenizer, tmp_path / "tokenizer", 64)
    loaded, theirs = load_tokenizer(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs.is_fast and len(theirs) == 400 and theirs.eos_token_id == END_ID and theirs.model_max_length == 64
    for text in [*texts[:20], *ODD]:
        ids = loaded.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids, skip_special_tokens=False) == theirs.decode(ids) == text
        if END_OF_TEXT not in text:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert END_ID not in ids  # a document that spells the mark out has no end there


def test_tokens_of_documents_end_to_end(tmp_path: Path) -> None:
    texts = [*planted(50, 2)[0], *(text for text in ODD if text.strip() == text and "\0" not in text)]
    documents = stored(tmp_path, texts)
    tokenizer, _ = train_tokenizer(documents, np.arange(50), 300, seed=0)
    rows = np.array([0, 3, 4, len(texts) - 1])
    ends_D = tokenize(tokenizer, documents, rows, tmp_path / "tokens")
    stream = np.fromfile(tmp_path / "tokens", np.uint16)
    assert ends_D[-1] == len(stream) and np.array_equal(np.flatnonzero(stream == END_ID), ends_D - 1)
    parts = np.split(stream, ends_D[:-1])
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == [texts[row] for row in rows]


def test_it_is_learnt_from_the_given_rows_alone_and_always_the_same(tmp_path: Path) -> None:
    texts = planted(120, 3)[0]
    files = []
    for n, others in enumerate((["zzzzzz"] * 50, ["quite other words"] * 50, ["zzzzzz"] * 50)):
        (tmp_path / str(n)).mkdir()
        documents = stored(tmp_path / str(n), [*texts, *others])
        tokenizer, _ = train_tokenizer(documents, np.arange(120), 350, seed=0)
        files.append(json.loads(tokenizer.to_str()))
    assert files[0] == files[1] == files[2]
    tokenizer, _ = train_tokenizer(documents, np.arange(100, 170), 350, seed=0)
    assert json.loads(tokenizer.to_str()) != files[0]


def test_a_vocabulary_that_the_text_supports(tmp_path: Path) -> None:
    documents = stored(tmp_path, planted(20, 2)[0])
    with pytest.raises(ValueError, match=r"data.vocab_size=5000 is more than 20 training documents support") as caught:
        train_tokenizer(documents, np.arange(20), 5000, seed=0)
    most = int(str(caught.value).partition("set data.vocab_size to ")[2].split()[0])
    assert 257 < most < 5000
    assert train_tokenizer(documents, np.arange(20), most, seed=0)[0].get_vocab_size() == most


def test_a_large_corpus_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = stored(tmp_path, planted(100, 2)[0])
    monkeypatch.setattr("headdyn.data.text.tokenizer.TRAINING_BYTES", 5000)
    assert 4500 < train_tokenizer(documents, np.arange(100), 300, seed=0)[1] <= 5000
