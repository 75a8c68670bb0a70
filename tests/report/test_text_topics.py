"""What a report says of a text corpus, from facts whose numbers are known."""

import re
from types import SimpleNamespace

from headdyn.report.sections.text_topics import section

FACTS = {
    "documents_read": 7600,
    "exact_duplicates": 2,
    "near_duplicates": 11,
    "embedding": "tfidf",
    "components": 20,
    "explained_variance": 0.045,
    "stability_adjusted_rand": 0.599,
    "stability_adjusted_rand_least": 0.532,
    "stability_adjusted_rand_most": 0.684,
    "stability_seeds": 5,
    "silhouette": 0.1558,
    "silhouette_null": 0.0376,
    "silhouette_null_p95": 0.0397,
    "silhouette_p": 0.025,
    "silhouette_documents": 2000,
    "given_adjusted_rand": 0.33207,
    "given_adjusted_rand_null": -2e-06,
    "given_adjusted_rand_null_p95": 0.00032,
    "given_adjusted_rand_p": 0.001,
    "given_topics": 4,
    "given_documents": 7589,
    "vocab_size": 512,
    "val_bytes_per_token": 1.917,
    "train_sequences": 1024,
    "val_sequences": 256,
    "val_documents_per_sequence": 3.97,
    "val_topics_per_sequence": 3.27,
    "val_share_of_two_documents_of_a_topic": 0.609,
    "topic_names": ["0 game win", "1 oil prices"],
    "topic_documents": [1516, 822],
    "topic_terms": [["game", "win"], ["oil", "prices"]],
}


def page(*manifests):
    """The text of the section about runs with these manifests; "" where there is none."""
    runs = [SimpleNamespace(run=SimpleNamespace(manifest=each)) for each in manifests]
    made = section(SimpleNamespace(complete=runs))
    return "" if made is None else made.html.striptags()


def manifest(facts, key="a", name="text"):
    return {"corpus": {"name": name, "facts": facts}, "stages": {"corpus": {"key": key}}}


def test_each_number_stands_beside_its_null():
    runs = [SimpleNamespace(run=SimpleNamespace(manifest=manifest(FACTS)))] * 2  # two runs on one corpus
    html = section(SimpleNamespace(complete=runs)).html
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert facts["documents"].endswith("2 exact and 11 near duplicates left out")
    assert "0.156" in facts["silhouette"] and "0.038" in facts["silhouette"] and "0.025" in facts["silhouette"]
    assert "0.332" in facts["agreement with given topics"] and "0.0003" in facts["agreement with given topics"]
    assert "0.60" in facts["stability"] and "0.53 to 0.68" in facts["stability"]
    assert "<td>1 oil prices</td><td>822</td><td>oil, prices</td>" in html and "Corpus" not in html


def test_given_topics_have_no_clusters_to_judge():
    given = {k: v for k, v in FACTS.items() if not k.startswith(("silhouette", "stability", "given", "embedding"))}
    text = page(manifest({**given, "topic_terms": None}))
    assert "oil prices" in text and "oil, prices" not in text
    for absent in ("silhouette", "stability", "topics from", "agreement with given topics"):
        assert absent not in text


def test_two_corpora_are_told_apart_and_other_runs_have_none():
    text = page(manifest(FACTS), manifest(FACTS, key="b"))
    assert "Corpus 1" in text and "Corpus 2" in text
    assert page(manifest({}, name="micro_languages"), {}) == ""
