from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from headdyn.core.records import HeadTable
from headdyn.report.pattern_figure import telling_patterns
from tests.figure_checks import clipped, overlapping
from tests.report.folders import heads, patterns


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    patterns(tmp_path / "patterns.safetensors", 2, 2, 12, sequences=3)  # a topic of six tokens, then another
    return tmp_path / "patterns.safetensors"


def test_the_telling_head_is_drawn_on_two_sequences_with_its_topics_boundary(kept: Path) -> None:
    figure = telling_patterns(heads(np.array([[0.0, 0.1], [0.3, 0.2]])), kept)
    panels = figure.axes[:2]
    assert panels[0].get_title() == "most topic-selective\nlayer 1, head 0"
    assert [axes.get_ylabel() for axes in panels] == ["sequence 1", "sequence 2"]
    stored = load_file(kept)["pattern.1"][:, 0].astype(np.float32)
    for n, axes in enumerate(panels):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), stored[n])
        assert {segment[0][1] for segment in axes.collections[0].get_segments()} == {5.5}  # type: ignore[attr-defined]
    assert clipped(figure) == [] and overlapping(figure) == []


def test_a_head_of_two_roles_is_drawn_once(kept: Path) -> None:
    value_LH = np.array([[0.0, 0.1], [0.3, 0.2]])
    roles = ("selectivity", "previous_token", "induction")
    shown = (value_LH, 1 - value_LH, value_LH)
    tables = [HeadTable.per_head(role, v_LH, n=1, unit="sequence") for role, v_LH in zip(roles, shown, strict=True)]
    figure = telling_patterns(HeadTable.concat(tables), kept)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    both, other = "most topic-selective and strongest induction", "strongest previous-token"
    assert titles == [f"{both}\nlayer 1, head 0", f"{other}\nlayer 0, head 0"]
    assert clipped(figure) == [] and overlapping(figure) == []


def test_without_roles_the_first_head_is_shown_and_it_says_so(kept: Path) -> None:
    figure = telling_patterns(HeadTable.concat([]), kept)
    assert figure.axes[0].get_title() == "no roles were measured\nlayer 0, head 0"
    assert clipped(figure) == [] and overlapping(figure) == []
