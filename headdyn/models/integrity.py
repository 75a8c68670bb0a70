"""Checks by hashes of the weights whether the revisions of a series are what their names say.

In public suites step0 has been equal to step1, and 86 of 154 branches of one model have had weights of late training.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Integrity:
    """The groups of revisions with the same weights (`duplicates`), and why revisions are not counted (`excluded`)."""

    duplicates: tuple[tuple[str, ...], ...]
    excluded: Mapping[str, str]


def check_integrity(hashes: Mapping[str, str], final: str | None = None) -> Integrity:
    """Compare the state hashes of a series' revisions, given in the order of training.

    If several revisions have the same weights, at most one of them has its right name, and nothing says which: none of
    them is counted. The exception is `final`, the revision that is known to be the end of training: it is counted.
    """
    groups: dict[str, list[str]] = {}
    for revision, digest in hashes.items():
        groups.setdefault(digest, []).append(revision)
    duplicates = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    excluded = {}
    for group in duplicates:
        for revision in (revision for revision in group if revision != final):
            others = ", ".join(other for other in group if other != revision)
            excluded[revision] = (
                f"its weights are those of {final}, the end of training"
                if final in group
                else f"its weights are those of {others}, so one of the names is wrong"
            )
    return Integrity(duplicates=duplicates, excluded=excluded)
