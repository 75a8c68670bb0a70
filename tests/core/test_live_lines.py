"""Lines that are drawn anew: in a terminal, in a notebook, and elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from headdyn.core import live_lines
from headdyn.core.live_lines import LiveLines
from headdyn.report.board import Board


class Jupyter:
    """What IPython offers in a kernel: every display by its id, the last one counting."""

    def __init__(self, kernel: object) -> None:
        self.drawn: dict[str, list[str]] = {}
        self.get_ipython = lambda: SimpleNamespace(kernel=kernel)
        self.display = SimpleNamespace(display=self._display)

    def _display(self, bundle: dict[str, str], *, raw: bool, display_id: str, update: bool = False) -> None:
        assert raw and update == (display_id in self.drawn)
        self.drawn.setdefault(display_id, []).append(bundle["text/html"])


@pytest.fixture
def jupyter(monkeypatch: pytest.MonkeyPatch) -> Jupyter:
    shell = Jupyter(kernel=object())
    monkeypatch.delitem(sys.modules, "marimo", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", shell)  # type: ignore[arg-type]
    return shell


def test_a_notebook_has_one_output_that_is_drawn_anew(jupyter: Jupyter, capfd: pytest.CaptureFixture[str]) -> None:
    with Board(2) as board:
        board.begin("first")
        board.refresh()
        board.progress("first", "step 1/8  loss < 2")
        board.refresh()
        board.log("first", "analysing")
        board.end("first", "done", "")
        board.begin("second")
        board.refresh()
        board.end("second", "failed", "why")
    (drawn,) = jupyter.drawn.values()
    assert "first" in drawn[1] and "0 of 2 done" in drawn[1] and "step 1/8  loss &lt; 2" in drawn[2]
    assert "1 of 2 done" in drawn[3] and "first" not in drawn[3] and drawn[-1] == ""
    assert capfd.readouterr().err == "2/2 second failed after 0 s: why\n"


def test_numbers_in_a_terminal_have_no_colours_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    LiveLines(print).console.print("step 12 of 300")
    assert capfd.readouterr().err == "step 12 of 300\n"


def test_marimo_has_it_in_the_output_of_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    marimo = pytest.importorskip("marimo")
    drawn: list[Any] = []
    monkeypatch.setattr(marimo, "running_in_notebook", lambda: True)
    monkeypatch.setattr(marimo.output, "replace", drawn.append)
    with LiveLines(lambda text: pytest.fail(text)) as lines:
        lines.show({"run": "step 1/2"})
        lines.show({"run": "step 2/2"})
    assert ["step 1/2" in drawn[0].text, "step 2/2" in drawn[1].text, drawn[2]] == [True, True, None]


def test_elsewhere_lines_are_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 14.0, 15.0, 15.0, 20.0])
    monkeypatch.setattr(live_lines.time, "monotonic", lambda: next(clock))
    monkeypatch.setitem(sys.modules, "IPython", Jupyter(kernel=None))  # type: ignore[arg-type]
    written: list[str] = []
    with LiveLines(written.append) as lines:
        for step in range(3):
            lines.show({"run": f"step {step}"})
    assert written == ["run: step 1"]


def test_a_line_that_has_not_changed_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a job whose training has ended and whose analyses go on."""
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(live_lines.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setitem(sys.modules, "IPython", Jupyter(kernel=None))  # type: ignore[arg-type]
    written: list[str] = []
    with LiveLines(written.append) as lines:
        for other in ("step 1", "step 2", "step 3"):
            for _ in range(4):
                lines.show({"ended": "step 8/8", "at work": other})
    assert written == ["ended: step 8/8", "at work: step 1", "at work: step 2", "at work: step 3"]
