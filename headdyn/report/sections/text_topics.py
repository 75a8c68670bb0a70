"""Corpora of real text: their documents, how their topics were found, and how far the topics can be trusted."""

from collections.abc import Mapping
from typing import Any

from headdyn.core.numbers import fixed, number, p_value
from headdyn.report.blocks import Heading, Section, Table, facts
from headdyn.sweep.record import SweepRecord

_EMBEDDINGS = {"tfidf": "TF-IDF with truncated SVD", "minilm": "MiniLM sentence embeddings"}
_ABOUT = (
    "Topics are clusters of documents, not given: what heads do by topic is only as meaningful as the clusters. A "
    "document's own earlier tokens share its topic, so a head that prefers its own document passes for a topic head in "
    "topic selectivity, which subtracts the attention within the topics of other sequences. selectivity_documents lets "
    "the documents of the same sequence exchange their topics instead, and is not deceived."
)


def section(sweep: SweepRecord) -> Section | None:
    """One part for each text corpus of the runs; None for runs on micro-languages or prompts."""
    corpora: dict[str, Mapping[str, Any]] = {}
    for job in sweep.complete:
        corpus = job.run.manifest.get("corpus", {})
        if corpus.get("name") == "text":
            corpora.setdefault(job.run.manifest["stages"]["corpus"]["key"], corpus["facts"])
    if not corpora:
        return None
    blocks: list[Any] = [_ABOUT]
    for place, recorded in enumerate(corpora.values(), 1):
        topics = Table(columns=["topic", "documents", "its terms"], rows=_topics(recorded))
        blocks += [Heading(f"Corpus {place}" if len(corpora) > 1 else ""), facts(_facts(recorded)), topics]
    return Section("topics", "Text and topics", blocks)


def _facts(f: Mapping[str, Any]) -> dict[str, str]:
    removed = f"{number(f['exact_duplicates'])} exact and {number(f['near_duplicates'])} near duplicates left out"
    entries = {"documents": f"{number(f['documents_read'])} read, {removed}"}
    if "embedding" in f:
        parts = [_EMBEDDINGS[f["embedding"]]]
        if f.get("explained_variance") is not None:
            parts.append(f"{f['components']} components, {100 * f['explained_variance']:.1f} % of the variance")
        entries["topics from"] = "clusters of " + ", ".join(parts)
    if f.get("silhouette") is not None:
        entries["silhouette"] = (
            f"{fixed(f['silhouette'], 3)} on {number(f['silhouette_documents'])} documents; Gaussian points with the "
            f"documents' covariance give {fixed(f['silhouette_null'], 3)}, at the 95th percentile "
            f"{fixed(f['silhouette_null_p95'], 3)} (p {p_value(f['silhouette_p'])})"
        )
    elif "silhouette_absent" in f:
        entries["silhouette"] = f"absent: {f['silhouette_absent']}"
    if f.get("stability_adjusted_rand") is not None:
        entries["stability"] = (
            f"adjusted Rand {fixed(f['stability_adjusted_rand'], 2)} between clusterings of "
            f"{f['stability_seeds']} seeds ({fixed(f['stability_adjusted_rand_least'], 2)} to "
            f"{fixed(f['stability_adjusted_rand_most'], 2)}); 1 would be the same clusters each time"
        )
    if f.get("given_adjusted_rand") is not None:
        entries["agreement with given topics"] = (
            f"adjusted Rand {fixed(f['given_adjusted_rand'], 3)} with {f['given_topics']} given topics of "
            f"{number(f['given_documents'])} documents; relabelled documents give "
            f"{fixed(f['given_adjusted_rand_null'], 3)}, at the 95th percentile "
            f"{fixed(f['given_adjusted_rand_null_p95'], 4)} (p {p_value(f['given_adjusted_rand_p'])})"
        )
    entries["tokens"] = (
        f"byte-level BPE with {number(f['vocab_size'])} tokens, {fixed(f['val_bytes_per_token'], 2)} bytes a token; "
        f"{number(f['train_sequences'])} training and {number(f['val_sequences'])} held-out sequences"
    )
    entries["a sequence"] = (
        f"{fixed(f['val_documents_per_sequence'], 1)} documents of {fixed(f['val_topics_per_sequence'], 1)} topics; "
        f"{100 * f['val_share_of_two_documents_of_a_topic']:.0f} % hold two documents of one topic"
    )
    return entries


def _topics(f: Mapping[str, Any]) -> list[list[str]]:
    terms = map(", ".join, f.get("topic_terms") or [[] for _ in f["topic_names"]])
    return [list(row) for row in zip(f["topic_names"], f["topic_documents"], terms, strict=True)]
