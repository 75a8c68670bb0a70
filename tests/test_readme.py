"""What the README and docs/ say works, works: commands, links, Python examples, numbers."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch

from headdyn.models.checkpoints.snapshots import save_snapshot
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from headdyn.models.frozen import tensor_norms
from headdyn.plan import make_plan, plain_arguments
from tests.small_models import GPT2, GQA, MHA, NEOX, drawn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ROOT / "docs" / "commands.md"
STUDIES = sorted(ROOT.glob("experiments/*/README.md"))


def commands(text: str) -> list[list[str]]:
    """The arguments of every headdyn.run command in a text's code lines."""
    lines = re.findall(r"^    python -m headdyn\.run([^\n#]*)", text, re.MULTILINE)
    return [line.split() for line in lines]


@pytest.mark.parametrize("source", [ROOT / "README.md", COMMANDS, *STUDIES], ids=lambda path: path.parent.name)
def test_commands_compose(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    text_file = tmp_path / "text.jsonl"
    text_file.write_text('{"text": "one"}\n')
    for arguments in commands(source.read_text(encoding="utf-8")):
        if {"--help"} & set(arguments):
            continue
        arguments = [f"data.path={text_file}" if a.startswith("data.path=") else a for a in arguments]
        assert make_plan(plain_arguments(arguments)).jobs


def test_there_are_commands_to_check() -> None:
    assert len(commands(README)) >= 6
    assert len(commands(COMMANDS.read_text(encoding="utf-8"))) >= 16


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    for source in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!http)([^)#]+)", source.read_text(encoding="utf-8"))
        assert not [link for link in links if not (source.parent / link).exists()]


def test_every_study_is_introduced_by_its_title() -> None:
    science = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    folders = [file.parent.name for file in (ROOT / "headdyn" / "studies").glob("*/__init__.py")]
    studies = [importlib.import_module(f"headdyn.studies.{name}").STUDY for name in folders]
    assert len(studies) == 5
    for study in studies:
        assert (
            f"| {study.title} |" in README
            and f"**{study.title}.** {study.question}".replace("“", '"').replace("”", '"') in science
        )


def test_its_numbers_are_those_on_record() -> None:
    """Every number with an interval, and every count of suites, stands in the study that it is taken from."""
    numbers = re.findall(r"[−+]?\d[\d.]* \[[^]]+\]", README)
    matrix = (ROOT / "experiments" / "matrix" / "README.md").read_text(encoding="utf-8")
    assert len(numbers) == 7 and all(number in matrix for number in numbers)


def test_the_python_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    decoder = Decoder(MHA).initialise(torch.Generator().manual_seed(0), 0.02)
    snapshot = save_snapshot(tmp_path, decoder, 3)
    exec(compile(ast.parse(code[1]), "README.md", "exec"), {"SNAPSHOT": snapshot})
    shape, changed = capsys.readouterr().out.splitlines()
    assert shape == str(torch.Size([4, MHA.num_heads, 32, 32]))
    assert float(re.sub(r"[^\d.e-]|, .*", "", changed.removeprefix("tensor("))) > 0


@pytest.mark.parametrize(
    "config",
    [GPT2, NEOX, GQA, dataclasses.replace(GQA, qk_norm=False, qkv_bias=True)],
    ids=["gpt2", "neox", "qwen3", "qwen2"],
)
def test_tensorlens_runs_on_a_hugging_face_checkpoint(config: DecoderConfig, tmp_path: Path, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", COMMANDS.read_text(encoding="utf-8"), re.DOTALL)
    config = dataclasses.replace(config, head_dim=config.d_model // config.num_heads)
    export_pretrained(drawn(config, dtype=torch.float32), tmp_path)
    names = {"FOLDER": tmp_path, "torch": torch}
    exec(compile(ast.parse(code), "commands.md", "exec"), names)
    width = config.d_model
    assert capsys.readouterr().out.startswith(str(torch.Size([8, width, 8, width])))
    frozen, tokens_BT = names["frozen"], names["tokens_BT"]
    norm_IJ = names["T_IDJD"].square().sum((1, 3)).sqrt()
    torch.testing.assert_close(tensor_norms(frozen), norm_IJ)
    with torch.no_grad():  # without biases the shares of all tokens are the logits, less their mean
        logits_BTV = names["decoder"](tokens_BT)
        picked_BT = logits_BTV.gather(-1, tokens_BT[..., None])[..., 0] - logits_BTV.mean(-1)
    off = abs(float(names["pulled"].token_shares(frozen).sum() - picked_BT.sum()))
    assert (off < 1e-3) == (config.norm == "rms" and not config.qkv_bias)


def test_the_organism_study_shows_its_own_table() -> None:
    folder = ROOT / "experiments" / "model_organisms"
    assert (folder / "table.md").read_text(encoding="utf-8").strip() in (folder / "README.md").read_text(
        encoding="utf-8"
    )
