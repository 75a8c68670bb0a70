"""The scan over groups of any size: by brute force, at its level where heads are alike, and on planted groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headdyn.analysis.interventions.group_scan import GroupScan
from headdyn.analysis.interventions.group_scan_measure import Groups, Scan, scanned_groups
from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching, heads_as_weights
from headdyn.core.statistics import at_least_as_high
from tests.analysis.interventions.test_specialization import model
from tests.small_tokenizer import prompts


def scan_of(groups: Groups, delta_SP: np.ndarray) -> Scan:
    return Scan.of(groups, delta_SP, np.full(delta_SP.shape[1], 1 / delta_SP.shape[1]))


def exchangeable(groups: Groups, pairs: int, draws: np.random.Generator) -> np.ndarray:
    """Δ that heads bring alone and two by two, drawn anew for each pair: no group is special."""
    alone_HP = draws.exponential(size=(groups.member_SH.shape[1], pairs))
    together_HP = draws.normal(size=alone_HP.shape)
    member = groups.member_SH.astype(float)
    return member @ alone_HP + (member @ together_HP) ** 2


def test_the_scan_and_its_null_by_brute_force() -> None:
    """Three heads, three pairs: every relabelling of the second and third pair, one group at a time."""
    draws = np.random.default_rng(0)
    groups = scanned_groups(3, 2, 1_000, draws)
    names = [frozenset(np.flatnonzero(row).tolist()) for row in groups.member_SH]
    assert sorted(map(sorted, names)) == [[0], [0, 1], [0, 2], [1], [1, 2], [2]]
    delta = {name: draws.normal(size=3) for name in names}

    def largest(labels: tuple[tuple[int, ...], ...]) -> float:
        values = []
        for name in names:
            alike = [other for other in names if len(other) == len(name)]
            relabelled = [delta[frozenset(label[h] for h in name)][p] for p, label in enumerate(labels)]
            mean = [np.mean([delta[other][p] for other in alike]) for p in range(3)]
            variance = sum(np.var([delta[other][p] for other in alike]) for p in range(3)) / 9
            values.append((np.mean(relabelled) - np.mean(mean)) / np.sqrt(variance))
        return max(values)

    every = list(itertools.permutations(range(3)))
    by_hand = [largest(labels) for labels in itertools.product(every, repeat=3)]
    scan = scan_of(groups, np.array([delta[name] for name in names]))
    null = scan.null(999, draws)
    assert null[0] == pytest.approx(by_hand[0]) and len(null) == 36  # the first pair is left alone
    np.testing.assert_allclose(np.sort(null), np.sort(by_hand)[::6])  # which leaves each maximum a sixth as often
    assert at_least_as_high(null) == pytest.approx(np.mean(np.array(by_hand) >= by_hand[0] - 1e-9))


@pytest.mark.parametrize(("heads", "most"), [(5, 1_000), (8, 24)])
def test_the_scan_is_paid_for(heads: int, most: int) -> None:
    """No group is special: p is at most 0.05 in one of twenty, and without the maximum in most."""
    p, best_alone = [], []
    for seed in range(120):
        draws = np.random.default_rng(seed)
        groups = scanned_groups(heads, heads // 2, most, draws)
        scan = scan_of(groups, exchangeable(groups, 6, draws))
        p.append(at_least_as_high(scan.null(199, draws)))
        best, part, pairs = scan.standardised_S.argmax(), scan.standardised_SP, np.arange(6)
        same = groups.relabellings(6, 199, draws)
        best_alone.append(at_least_as_high(np.array([part[image[best], pairs].sum() for image in same])))
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # 120 trials at 0.05: 99.9 % stay within it
    assert 0.4 < np.mean(p) < 0.62
    assert np.mean(np.array(best_alone) <= 0.05) > 0.5  # mutant: the best group against itself relabelled


@pytest.mark.parametrize("most", [1_000, 64])
def test_a_planted_group_is_found(most: int) -> None:
    draws = np.random.default_rng(3)
    groups = scanned_groups(8, 4, most, draws)
    planted_H = groups.member_SH[groups.size_S == 3][0]  # a sample need not hold a group chosen before
    whole_S = (groups.member_SH & planted_H).sum(1) == 3
    scan = scan_of(groups, 0.2 * exchangeable(groups, 12, draws) + 3.0 * whole_S[:, None])
    assert whole_S[scan.standardised_S.argmax()] and at_least_as_high(scan.null(199, draws)) == 1 / 200
    assert scan.held_out_P().mean() > 1.5


def test_what_the_best_group_adds_is_0_on_average_where_none_is_special() -> None:
    held_out, on_the_same = [], []
    for seed in range(60):
        draws = np.random.default_rng(seed)
        groups = scanned_groups(6, 3, 1_000, draws)
        scan = scan_of(groups, exchangeable(groups, 6, draws))
        held_out.append(scan.held_out_P().mean())
        on_the_same.append(scan.excess_SP[scan.standardised_S.argmax()].mean())  # mutant: measured where it was chosen
    for values, lowest, highest in ((held_out, -3.3, 3.3), (on_the_same, 5, np.inf)):
        assert lowest < np.mean(values) / (np.std(values, ddof=1) / np.sqrt(60)) < highest


def test_groups_and_their_relabellings_are_closed() -> None:
    draws = np.random.default_rng(4)
    few, many = scanned_groups(6, 3, 1_000, draws), scanned_groups(12, 6, 100, draws)
    assert len(few.member_SH) == 6 + 15 + 20 and few.order_H is None and many.order_H is not None
    sizes = np.bincount(many.size_S)
    assert sizes[1] == 12 and sizes[2] == 66 and (sizes[3:] <= 96).all() and (sizes[3:] >= 12).all()
    for groups in (few, many):
        first, *others = itertools.islice(groups.relabellings(3, 200, draws), 5)
        assert (first == np.arange(len(first))[:, None]).all()
        for image_SP in others:
            assert (np.sort(image_SP, axis=0) == first).all()  # each group takes one other's place
            assert (groups.size_S[image_SP] == groups.size_S[:, None]).all()


def test_one_pair_leaves_nothing_to_relabel_and_lists_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = scanned_groups(12, 3, 1_000, np.random.default_rng(0))
    assert groups.order_H is None
    monkeypatch.setattr(Groups, "_labels", lambda _: pytest.fail("12! relabellings are listed"))
    (only,) = groups.relabellings(1, 199, np.random.default_rng(0))
    assert only.tolist() == [[group] for group in range(12 + 66 + 220)]
    scan = scan_of(groups, exchangeable(groups, 1, np.random.default_rng(1)))
    assert scan.null(199, np.random.default_rng(0)).tolist() == [scan.standardised_S.max()]


def test_heads_that_all_do_the_same_stand_out_nowhere() -> None:
    groups = scanned_groups(4, 2, 1_000, np.random.default_rng(0))
    scan = scan_of(groups, np.full((len(groups.member_SH), 3), 0.1) * groups.size_S[:, None])
    assert (scan.standardised_S == 0).all() and at_least_as_high(scan.null(199, np.random.default_rng(0))) == 1


def test_the_analysis_against_patching_by_hand() -> None:
    family, decoder = prompts(bug_pairs=3, control_pairs=2, variants_per_pair=2), model()
    chosen = GroupScan(dtype="float64", relabellings=199, bootstrap_draws=100)
    findings = chosen(decoder, family, np.random.default_rng(0))
    table = findings.tables["group_scan"].to_pylist()
    assert [row["heads"] for row in table] == [[0], [1], [2], [3], *map(list, itertools.combinations(range(4), 2))]
    engines = [PromptPatching(decoder, family.where(family.is_bug_P == bug), Patch(), [1]) for bug in (True, False)]
    cells = heads_as_weights([row["heads"] for row in table], 4)
    delta_2S = [engine.deltas({1: cells})[1].mean(1) for engine in engines]
    for size in (1, 2):
        at = [i for i, row in enumerate(table) if row["size"] == size]
        expected = np.mean([delta_S[at] - delta_S[at].mean() for delta_S in delta_2S], axis=0)
        np.testing.assert_allclose([table[i]["excess_nats"] for i in at], expected, atol=1e-12)
    summary = findings.table.summary()
    best = max(table, key=lambda row: row["standardised"])
    assert summary["best_group_nats"]["n"] == 5
    assert summary["scan_maximum"]["value"] == pytest.approx(best["standardised"])


def test_what_cannot_be_scanned_is_refused() -> None:
    for heads in (1, 64):
        with pytest.raises(ValueError, match=f"groups of 2 to 53 heads of a layer, and this model has {heads}"):
            scanned_groups(heads, 1, 1_000, np.random.default_rng(0))
    with pytest.raises(ValueError, match="groups_per_size=24 must be at least the 32 heads"):
        scanned_groups(32, 2, 24, np.random.default_rng(0))
    assert len(scanned_groups(32, 2, 32, np.random.default_rng(0)).member_SH) == 64
