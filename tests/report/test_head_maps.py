import xml.etree.ElementTree as ET

import numpy as np
import pytest

from headdyn.report.head_maps import Colours, head_map


def test_a_head_map_has_a_cell_a_head_and_leaves_absent_ones_empty() -> None:
    values = np.array([[0.1, np.nan], [-0.2, 0.3]])
    svg = head_map(
        values,
        run=3,
        label="run",
        metric="selectivity",
        colours=Colours(low=-0.3, high=0.3, centre=0),
        marked_LH=values > 0.2,
    )
    cells = [node for node in ET.fromstring(str(svg)).iter() if node.attrib.get("class") == "cell"]
    assert [cell.attrib["data-head"] for cell in cells] == ["3 0 0", "3 0 1", "3 1 0", "3 1 1"]
    assert [cell.find("text").text for cell in cells] == ["0.10", None, "−0.20", "0.30*"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("value", "side"), [(-0.3, "purple"), (0.3, "orange"), (0.0, "pale")])
def test_a_diverging_scale_tells_signs_apart(value: float, side: str) -> None:
    fill, ink = Colours(low=-0.3, high=0.3, centre=0)(value)
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    assert {"purple": blue > red > green, "orange": red > green > blue, "pale": min(red, green, blue) > 220}[side]
    assert ink == ("#000" if side == "pale" else "#fff")
