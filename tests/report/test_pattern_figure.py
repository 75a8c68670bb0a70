from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headdyn.core.figures import Figure
from headdyn.core.records import HeadTable
from headdyn.report.sections.patterns import patterns_by_role
from tests.figure_checks import clipped, decoded, overlapping, rows, texts
from tests.report.folders import heads, patterns


@pytest.fixture
def pattern_file(tmp_path: Path) -> Path:
    patterns(tmp_path / "patterns.safetensors", 2, 2, 12, sequences=3)  # a topic of six tokens, then another
    return tmp_path / "patterns.safetensors"


def titles(figure: Figure) -> list[str]:
    """The titles of the panels, line by line, without the figure's own."""
    return [text.text for text in texts(figure) if text.role == "title-text"][:-1]


def test_the_telling_head_is_drawn_on_two_sequences_with_its_topics_boundary(pattern_file: Path) -> None:
    figure = patterns_by_role(heads(np.array([[0.0, 0.1], [0.3, 0.2]])), pattern_file)
    assert titles(figure) == ["sequence 1", "sequence 2", "most topic-selective", "layer 1, head 0"]
    stored = load_file(pattern_file)["pattern.1"][:, 0].astype(np.float32)
    images = rows(figure, "url")
    assert len(images) == 2
    for image, pattern_QK in zip(images, stored[:2], strict=True):
        index_QK = decoded(image["url"])[::42, ::42][:12, :12]  # 512 // 12 pixels a number
        lower = np.tril_indices(12)
        np.testing.assert_array_equal(index_QK[lower], np.rint(254 * np.sqrt(pattern_QK[lower])))
    assert [(row["row"], row["edge"]) for row in rows(figure, "edge")] == [("sequence 1", 5.5), ("sequence 2", 5.5)]
    assert clipped(figure) == [] and overlapping(figure) == []


def test_a_head_of_two_roles_is_drawn_once(pattern_file: Path) -> None:
    value_LH = np.array([[0.0, 0.1], [0.3, 0.2]])
    roles = ("selectivity", "previous_token", "induction")
    shown = (value_LH, 1 - value_LH, value_LH)
    tables = [HeadTable.per_head(role, v_LH, n=1, unit="sequence") for role, v_LH in zip(roles, shown, strict=True)]
    figure = patterns_by_role(HeadTable.concat(tables), pattern_file)
    both, other = "most topic-selective and strongest induction", "strongest previous-token"
    found = " ".join(titles(figure))
    assert found == f"sequence 1 sequence 2 {both} layer 1, head 0 {other} layer 0, head 0"
    assert clipped(figure) == [] and overlapping(figure) == []


def test_without_roles_the_first_head_is_shown_and_it_says_so(pattern_file: Path) -> None:
    figure = patterns_by_role(HeadTable.concat([]), pattern_file)
    assert titles(figure)[2:] == ["no roles were measured", "layer 0, head 0"]
    assert clipped(figure) == [] and overlapping(figure) == []
