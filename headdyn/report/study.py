"""A sweep's results as files to commit: `python -m headdyn.report SWEEP --study experiments/NAME`.

results.md holds the command, the table and the answers in words; charts are SVG files that stand alone; the tables are
copied as they are. All of it is made from the sweep's records, so that a number in a study is one a command produced.
"""

from __future__ import annotations

import html
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from headdyn.core.figures import Figure, rendered
from headdyn.core.numbers import quantity, spelled
from headdyn.core.records import read_json
from headdyn.report import extension
from headdyn.report.cells import Cell, columns_for, summary_cell
from headdyn.report.sections.series_changes import changes
from headdyn.report.series.curves import other_curves, primary_curve
from headdyn.report.series.record import Series, read_series
from headdyn.report.series.words import series_statements
from headdyn.report.sweep_charts import effect_charts, loss_charts, probe_charts, recovery_charts
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import statements

RESULTS = "results.md"
COPIED = ("summary.csv", "timeline.csv", "effects.json", "matched_loss.json", "verdict.json")

_BAR = r"\|"  # a | inside a cell of a Markdown table
_MARGIN = 30.0
_SVG = "http://www.w3.org/2000/svg"
_STYLE = Path(__file__).with_name("templates") / "report.css"


def write_study(sweep_folder: Path, out: Path) -> list[Path]:
    """Write a sweep's results into `out`, leaving a README.md there alone. Returns what was written.

    Raises ValueError for a folder that is no finished sweep's.
    """
    sweep = SweepRecord.read(sweep_folder)
    series = read_series(sweep)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    charts = {
        "loss": loss_charts(sweep),
        "recovery": recovery_charts(sweep),
        "probes": probe_charts(sweep),
        "effects": effect_charts(sweep.effects),
    }
    for number, each in enumerate(series, 1):
        name = "series" if len(series) == 1 else f"series_{number}"
        for called, curve in {**_primary(each), **other_curves(each)}.items():
            written.append(out / f"{name}_{slug(called)}.svg")
            curve.save(written[-1])
    for name, made in charts.items():
        for chart in made:
            title = re.search(r'aria-label="([^"]*)"', str(chart))
            assert title is not None
            path = out / (f"{name}.svg" if len(made) == 1 else f"{name}_{slug(html.unescape(title[1]))}.svg")
            assert path not in written, f"two charts are called {path.name}"
            path.write_text(standalone(str(chart)), encoding="utf-8")
            written.append(path)
    for name in COPIED:
        if (sweep_folder / name).is_file():
            written.append(Path(shutil.copyfile(sweep_folder / name, out / name)))
    for figure in sorted((sweep_folder / "figures").glob("*.json")):
        written.append(out / f"{figure.stem}.svg")
        written[-1].write_bytes(rendered(read_json(figure), "svg"))
    (out / RESULTS).write_text(_results(sweep, series, written), encoding="utf-8")
    return [*written, out / RESULTS]


def _primary(series: Series) -> dict[str, Figure]:
    figure = primary_curve(series)
    return {} if figure is None or series.primary is None else {series.metric(series.primary).label: figure}


def slug(title: str) -> str:
    """A chart's title as a part of a file's name."""
    return re.sub(r"\W+", "_", title.lower().replace("δ", "delta").replace("'", ""), flags=re.ASCII).strip("_")


def standalone(markup: str) -> str:
    """A chart of a page, legend and style included, as one SVG document on white."""
    root = ET.fromstring(f"<div>{markup}</div>")
    chart = next(element for element in root.iter("svg") if element.get("class") == "chart")
    width, height = float(chart.attrib["width"]), float(chart.attrib["height"])
    left, top, row = 12.0, height + 14, 18.0
    for key in (element for element in root.iter("span") if element.get("class") == "key"):
        swatch = key[0]
        text = (swatch.tail or "").strip()
        wide = 44 + 6.4 * len(text)
        if left + wide > width and left > 12:
            left, top = 12.0, top + row
        swatch.tail = None
        swatch.attrib |= {"x": f"{left:g}", "y": f"{top - 5:g}"}
        chart.append(swatch)
        label = ET.SubElement(chart, "text", {"x": f"{left + 40:g}", "y": f"{top + 4:g}", "fill": "#1d2530"})
        label.text = text
        left += wide
    if left > 12:
        height = top + row
    for element in chart.iter():
        element.attrib.pop("data-run", None)
    chart.attrib |= {
        "xmlns": _SVG,
        "height": f"{height:g}",
        "width": f"{width + _MARGIN:g}",  # labels at the right edge may reach over it
        "viewBox": f"0 0 {width + _MARGIN:g} {height:g}",
        "font-family": "system-ui, sans-serif",
        "font-size": "11.5px",
    }
    style = ET.Element("style")
    style.text = _chart_style()
    paper = ET.Element("rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    chart[:0] = [style, paper]
    ET.indent(chart)
    return ET.tostring(chart, encoding="unicode") + "\n"


def _chart_style() -> str:
    """The report's rules for what is inside a chart, its colour names spelled out."""
    css = _STYLE.read_text(encoding="utf-8")
    names = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", css))
    rules = re.findall(r"svg [^{}]*\{[^}]*\}", css)
    spelled = re.sub(r"var\((--[\w-]+)\)", lambda name: names[name[1]], "\n".join(rules))
    return re.sub(r"\bsvg(?= \.)", "", spelled)


def _results(sweep: SweepRecord, series: Sequence[Series], written: Sequence[Path]) -> str:
    """The numbers and words of a sweep in Markdown."""
    made = [job.run.manifest for job in sweep.complete]
    lines = [f"# Results of {sweep.name}", ""]
    lines += ["Written by `python -m headdyn.report SWEEP --study FOLDER` from the sweep's records; not edited.", ""]
    if sweep.command:
        lines += [f"    {sweep.command}", ""]
    for name, key in (("code", "git"), ("started", "started")):
        found = sorted({str(manifest[key]) for manifest in made if manifest.get(key)})
        if found:
            lines.append(f"- {name}: {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else ""))
    machines = {", ".join(f"{k} {v}" for k, v in manifest["machine"].items()) for manifest in made}
    lines.append(f"- machine: {' | '.join(sorted(machines))}")
    lines += [f"- group {name}: {settings}" for name, settings in sweep.group_settings.items()]
    lines += [f"- merged: `{source['command']}`" for source in sweep.sources if source.get("command")]
    lines.append("")
    told = columns_for(sweep.complete)
    titles = [f"{quantity(name).label} ({quantity(name).unit})" for name in told]
    lines += ["| " + " | ".join(["run", *titles]) + " |", "|" + "---|" * (1 + len(told))]
    for job in sweep.complete:
        lines.append("| " + " | ".join([job.label, *(_spelled(summary_cell(job, name)) for name in told)]) + " |")
    lines += ["", "Brackets hold 95 % intervals; null: what chance gives.", ""]
    for job in sweep.failed:
        lines.append(f"- {job.run.name}: {job.run.status}. {job.run.manifest.get('error', 'it left no error')}")
    for statement in [*series_statements(series), *extension.headlines(sweep), *statements(sweep)]:
        lines += [f"## {statement.question}" + (f" ({statement.group})" if statement.group else ""), ""]
        lines += [*(f"- {sentence}" for sentence in statement.sentences), ""]
    for part in changes(sweep):
        lines += [f"## {part.title}", "", part.text or f"Absent: {part.reason}.", ""]
        lines += ["| metric | value | units | meaning |", "|---|---|---|---|"] if part.rows else []
        for metric, scalar, units, meaning in part.rows:
            value = spelled(scalar) if scalar.get("value") is not None else f"absent: {scalar['reason']}"
            lines.append(f"| {metric} | {value} | {units} | {meaning.replace('|', _BAR)} |")
        lines.append("")
    pictures = [path.name for path in written if path.suffix in (".svg", ".png")]
    lines += [f"![{Path(name).stem}]({name})\n" for name in pictures]
    return "\n".join(lines).rstrip() + "\n"


def _spelled(cell: Cell) -> str:
    if cell.reason:
        return f"absent: {cell.reason}"
    return "; ".join(filter(None, (f"{cell.value} {cell.interval}".strip(), cell.null, cell.note)))
