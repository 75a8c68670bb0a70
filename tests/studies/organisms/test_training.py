"""Model organisms: text and targets by hand, losses against one row at a time, layout, resuming, and a suite trained."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching, heads_as_weights
from headdyn.core.settings import build
from headdyn.core.store import StageInterruptedError, Store
from headdyn.data.comparisons import Comparisons, Pair
from headdyn.models.checkpoints import load
from headdyn.models.decoder import Decoder, Edit
from headdyn.models.revisions import LISTS, check_integrity
from headdyn.studies.organisms.settings import KINDS, Organism
from headdyn.studies.organisms.text import FORMATS, Batch, batch_of, draw_batch, tokenizer
from headdyn.studies.organisms.training import build_suite, interchange_losses
from headdyn.training.loop import TrainingDiverged, TrainingInterrupted

CONF = Path(__file__).parents[3] / "conf"
TINY = {
    "steps": 24,
    "num_layers": 3,
    "num_heads": 4,
    "d_model": 32,
    "batch_size": 4,
    "kept": "step0,step32000,step64000,step143000",
}


def organism(kind: str = "planted", **changes: Any) -> Organism:
    return Organism(name=f"organism_{kind}", organism=kind, **changes)


def tiny(kind: str = "planted", **changes: Any) -> Organism:
    return organism(kind, **{**TINY, **changes})


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("step*/model.safetensors"))}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    build_suite(tiny(), folder)
    return folder


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_state_every_setting_at_its_default(kind: str) -> None:
    option = yaml.safe_load((CONF / "model" / f"organism_{kind}.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((CONF / "model" / "organism_planted.yaml").read_text(encoding="utf-8"))
    assert option.pop("defaults", ["organism_planted"]) == ["organism_planted"]
    merged = {**base, **option}
    assert merged.pop("suite") == "${seed}"
    assert merged.pop("_target_") == f"{Organism.__module__}.{Organism.__qualname__}"
    assert Organism(**merged) == organism(kind)
    assert set(merged) | {"suite"} == {field.name for field in dataclasses.fields(Organism)}


def test_the_text_is_asked_as_the_comparisons_are() -> None:
    given = yaml.safe_load((CONF / "data" / "comparisons.yaml").read_text(encoding="utf-8"))["formats"]
    assert [{k: getattr(form, k) for k in ("name", "clean", "corrupted")} for form in FORMATS] == given


def test_revisions_and_their_training_steps() -> None:
    settings = organism(steps=400)
    assert [settings.training_step(f"step{s}") for s in (0, 512, 1000, 32000, 64000, 143000)] == [0, 1, 3, 90, 179, 400]
    onset = settings.truth()["onset"]
    assert settings.onset_step == 100
    assert (onset["after_revision"], onset["by_revision"]) == ("step32000", "step40000")
    steps = list(settings.saved.values())
    assert steps == sorted(set(steps)), "no two revisions have the same weights"
    for name in ("original_11", "original_8"):
        assert settings.series(name) == LISTS[name]
    assert settings.series("pythia_log") == ("step0", "step256", *LISTS["pythia_log"][11:])
    assert settings.series("step1000, step64000") == ("step1000", "step64000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"organism": "grown"}, "model.organism='grown' must be one of planted, scattered, diffuse, null"),
        ({"revision": "step256000"}, "the nearest is step143000"),
        ({"revision": "main"}, "model.revision=main is none of Pythia's"),
        ({"revision": "step2"}, "after 0 of 400 training steps, as step0 is; ask for step0"),
        ({"revision": "step3000"}, "is not saved.*Add it: model.kept=original_11,original_8,pythia_log,step3000"),
        ({"revisions": "original_11,step2"}, "ask for step0"),
        ({"num_heads": 7}, "model.num_heads=7 has no even and odd half"),
        ({"d_model": 90}, "model.d_model=90 is not a multiple of model.num_heads=12; set model.d_model=96"),
        ({"num_layers": 2}, "model.layer=1 is the last of model.num_layers=2.*set model.num_layers=3"),
        ({"layer": 3}, "model.layer=3 is out of range; this suite's layers are 0 to 2"),
        ({"onset": 1.0}, "model.onset=1.0 must be below 1"),
        ({"batch_size": 5}, "model.batch_size=5 must be even"),
        ({"redundancy": 7}, "redundancy=7 groups cannot be cut from the 6 heads .*; set it to 6 or less"),
        ({"strength": 1.5}, "model.strength=1.5 must be at most 1"),
        ({"position": "first"}, "model.position='first' must be one of block, last, answer"),
        ({"muon_lr": 0.0}, "model.muon_lr=0.0 must be above 0"),
        ({"dtype": "int8"}, "model.dtype='int8' must be one of float32, float16"),
        ({"suite": -1}, "model.suite=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused_with_the_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Organism, {"name": "o", "organism": "planted", **changes}, "model")


def test_what_is_planted_where() -> None:
    assert organism("planted").planted_heads == (0, 2, 4, 6, 8, 10)
    assert organism("diffuse").planted_heads == tuple(range(12)) and organism("null").planted_heads == ()
    halves = [organism("scattered", suite=suite).planted_heads for suite in range(200)]
    assert all(len(set(half)) == 6 and half == tuple(sorted(half)) for half in halves)
    share_H = np.mean([np.isin(np.arange(12), half) for half in halves], axis=0)
    assert np.abs(share_H - 0.5).max() < 4 * np.sqrt(0.25 / 200) and len(set(halves)) > 150
    known = organism("scattered", suite=3).truth()
    assert known["heads"] == list(halves[3]) and known["layer"] == 1 and known["onset"]["step"] == 35750
    assert organism("null").truth()["onset"] is None and organism("null").truth()["layer"] is None


# -- text -------------------------------------------------------------------------------------------------------------


def read(row: np.ndarray) -> str:
    return tokenizer().decode(row.tolist()).rstrip("\n")


def test_answers_and_counterfactual_answers_by_hand() -> None:
    bug, control = Pair(whole=9, tenths=8, hundredths=11), Pair(whole=9, tenths=2, hundredths=35)
    batch = batch_of([(bug, FORMATS[0], True), (control, FORMATS[2], False)])
    assert [read(row) for row in batch.own_NT] == [
        "Which is bigger: 9.8 or 9.11? 9.8",
        "Which number is greater: 9.2 or 9.35? 9.35",
        "Q: Which is bigger: 9.8 or 9.11?\nA: 9.11",
        "Q: Which number is greater: 9.2 or 9.35?\nA: 9.35",
    ]
    assert [read(row) for row in batch.other_NT] == [
        "Which is bigger: 9.8 or 9.11? 9.11",
        "Which number is greater: 9.2 or 9.35? 9.35",
        "Q: Which is bigger: 9.8 or 9.11?\nA: 9.8",
        "Q: Which number is greater: 9.2 or 9.35?\nA: 9.35",
    ]
    for tokens_NT, scored_NT, answers in (
        (batch.own_NT, batch.own_scored_NT, [" 9.8", " 9.35", " 9.11", " 9.35"]),
        (batch.other_NT, batch.other_scored_NT, [" 9.11", " 9.35", " 9.8", " 9.35"]),
    ):
        scored = [tokenizer().decode(row[mask].tolist()) for row, mask in zip(tokens_NT, scored_NT, strict=True)]
        assert scored == [f"{answer}\n\n" for answer in answers]


def test_partners_hold_the_same_token() -> None:
    batch = draw_batch(suite=0, step=5, pairs=16)
    assert len(batch.own_NT) == 32
    partner_N = np.roll(np.arange(32), 16)
    rows, places = np.nonzero(batch.partner_NT >= 0)
    there = batch.partner_NT[rows, places]
    assert (batch.own_NT[rows, places] == batch.own_NT[partner_N[rows], there]).all()
    assert (batch.partner_NT[partner_N[rows], there] == places).all(), "partners of each other"
    for row, mask in zip(batch.own_NT, batch.partner_NT >= 0, strict=True):
        assert read(row[mask]).startswith(" is bigger:" if " bigger" in read(row) else (" is larger:", " number is"))
        assert read(row[mask]).endswith("?")


def test_batches_are_half_bugs_and_a_function_of_suite_and_step() -> None:
    batch = draw_batch(suite=1, step=7, pairs=16)
    assert all(np.array_equal(a, b) for a, b in zip(*map(arrays, (batch, draw_batch(1, 7, 16))), strict=True))
    assert not np.array_equal(batch.own_NT[:, :9], draw_batch(1, 8, 16).own_NT[:, :9])
    assert ((batch.own_NT != batch.other_NT).any(1)).sum() == 16, "a bug pair's answers differ in both wordings"


def arrays(batch: Batch) -> list[np.ndarray]:
    return list(vars(batch).values())


class Words:
    """The tokenizer, with what is asked of one of Hugging Face's."""

    def encode(self, text: str) -> list[int]:
        return tokenizer().encode(text).ids

    def decode(self, token_ids: Any) -> str:
        return tokenizer().decode(list(token_ids))


def test_prompts_are_read_where_the_planting_wrote() -> None:
    prompts = Comparisons(formats=FORMATS, bug_pairs=6, control_pairs=0).prompts(Words())
    for group in prompts.groups:
        form = next(form for form in FORMATS if form.name == group.format)
        places = batch_of([(prompts.pairs[group.units_N[0]], form, True)]).partner_NT[1]
        block = group.block("span")
        at = np.flatnonzero(places >= 0)
        assert (at[0], len(at), places[at[0]]) == (block.target_start, block.length, block.source_start)


# -- the intervention -------------------------------------------------------------------------------------------------


def row_by_row(
    decoder: Decoder, batch: Batch, layer: int, carrying: tuple[int, ...], shift: int = 0
) -> dict[str, float]:
    """The three losses, every prompt on its own and from the first layer, its partner's z written position by position."""
    heads, half = decoder.config.num_heads, len(batch.own_NT) // 2
    sums: dict[str, list[float]] = {"text_nats": [], "carried_nats": [], "kept_nats": []}
    for i, (own, other) in enumerate(zip(batch.own_NT, batch.other_NT, strict=True)):
        j = (i + half) % len(batch.own_NT)
        z_THd = decoder.trace(torch.from_numpy(batch.own_NT[j : j + 1]), sites=("z",), layers=(layer,))["z", layer][0]
        for name, tokens, scored, patched in (
            ("text_nats", own, batch.own_scored_NT[i], ()),
            ("carried_nats", other, batch.other_scored_NT[i], carrying),
            ("kept_nats", own, batch.own_scored_NT[i], tuple(h for h in range(heads) if h not in carrying)),
        ):
            value, where = torch.zeros(1, len(own), heads, z_THd.shape[-1]), torch.zeros(1, len(own), heads, 1).bool()
            for t, place in enumerate(batch.partner_NT[i]):
                if place >= 0:
                    value[0, t], where[0, t, list(patched)] = z_THd[place + shift], True
            edit = Edit(site="z", layer=layer, value=value, where=where)
            logits = decoder.trace(torch.from_numpy(tokens)[None], edits=(edit,)).logits
            assert logits is not None
            log_p = F.log_softmax(logits[0], -1)
            sums[name] += [-log_p[t - 1, tokens[t]].item() for t in np.flatnonzero(scored)]
    return {name: float(np.mean(values)) for name, values in sums.items()}


@pytest.mark.parametrize("layer", [0, 1])
def test_losses_equal_one_row_at_a_time(layer: int) -> None:
    settings = tiny()
    config = settings.decoder_config(tokenizer().get_vocab_size())
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(0), std=0.5)
    batch = draw_batch(suite=0, step=0, pairs=6)
    with torch.no_grad():
        losses = {name: loss.item() for name, loss in interchange_losses(decoder, batch, layer, [(0, 2)]).items()}
        reference = row_by_row(decoder, batch, layer, (0, 2))
        swapped, shifted = row_by_row(decoder, batch, layer, (1, 3)), row_by_row(decoder, batch, layer, (0, 2), shift=1)
    assert losses == pytest.approx(reference, abs=5e-6)  # measured 6e-7
    for mutant in (swapped, shifted):
        for name in ("carried_nats", "kept_nats"):
            assert abs(losses[name] - mutant[name]) > 5e-3  # measured 6e-3 to 2e-1
    assert set(interchange_losses(decoder, batch, layer, [(0, 1, 2, 3)])) == {"text_nats", "carried_nats"}
    assert set(interchange_losses(decoder, batch, layer, ())) == {"text_nats"}


@pytest.mark.parametrize("position", ["last", "answer"])
def test_groups_carry_alone_wherever_the_choice_is_planted(position: Any) -> None:
    config = tiny().decoder_config(tokenizer().get_vocab_size())
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(0), std=0.5)
    batch = draw_batch(0, 0, 6, position)
    with torch.no_grad():
        losses = {name: loss.item() for name, loss in interchange_losses(decoder, batch, 1, [(0,), (2,)]).items()}
        first, second, both = (row_by_row(decoder, batch, 1, heads) for heads in ((0,), (2,), (0, 2)))
    assert losses["carried_nats"] == pytest.approx((first["carried_nats"] + second["carried_nats"]) / 2, abs=5e-6)
    assert losses["kept_nats"] == pytest.approx(both["kept_nats"], abs=5e-6)
    assert abs(losses["carried_nats"] - both["carried_nats"]) > 1e-3  # mutant: one group of all heads


def test_positions_by_hand() -> None:
    bug = Pair(whole=9, tenths=8, hundredths=11)
    plain, asked = "Which is bigger: 9.8 or 9.11? 9.8", "Q: Which is bigger: 9.8 or 9.11?\nA: 9.11"
    for position, carried in (("last", ("?", ":")), ("answer", (" 9.", " 9."))):
        batch = batch_of([(bug, FORMATS[0], True)], position)
        for row, text, piece in zip(range(2), (plain, asked), carried, strict=True):
            own, at = batch.own_NT[row], np.flatnonzero(batch.partner_NT[row] >= 0)
            assert read(own) == text and tokenizer().decode(own[at].tolist()) == piece
            end = len(tokenizer().encode(text[: text.rindex(" 9")]).ids)  # of the prompt
            assert at[0] == (end - 1 if position == "last" else end)
            assert (batch.partner_NT[1 - row][batch.partner_NT[row, at]] == at).all()


def test_grades_of_planting_and_what_they_are_cut_from() -> None:
    assert tiny(num_heads=12, d_model=48, redundancy=2).planted_groups == ((0, 4, 8), (2, 6, 10))
    assert tiny().planted_groups == ((0, 2),) and tiny(strength=0.0).planted_heads == ()
    assert tiny("scattered", strength=0.0).planted_groups == () and tiny(strength=0.0).truth()["onset"] is None
    assert tiny(redundancy=2).truth()["groups"] == [[0], [2]] and "groups" not in tiny().truth()


def test_what_recorded_suites_are_named_by_has_not_changed() -> None:
    later = {"strength", "redundancy", "position", "streams"}
    assert not later & tiny().recipe().keys() and not later & tiny("null", streams="suite").recipe().keys()
    assert tiny("null").recipe()["streams"] == "kind" and tiny(strength=0.5).recipe()["strength"] == 0.5


# -- suites -----------------------------------------------------------------------------------------------------------


def test_layout_and_parity_with_hugging_face(suite: Path, tmp_path: Path) -> None:
    settings, text = tiny(), "Q: Which is larger: 3.7 or 3.45?\nA: 3.45\n"
    assert sorted(path.name for path in suite.iterdir()) == [
        "metrics.jsonl",
        "organism.json",
        *sorted(settings.saved),
    ]
    assert json.loads((suite / "organism.json").read_text()) == json.loads(json.dumps(settings.truth()))
    hashes = {}
    for revision in settings.saved:
        loaded = load(str(suite), revision, store=Store(tmp_path))
        theirs = AutoModelForCausalLM.from_pretrained(suite / revision)
        tokens = AutoTokenizer.from_pretrained(suite / revision)
        assert loaded.tokenizer is not None and loaded.decoder.config.parallel_residual
        assert loaded.step == int(revision.removeprefix("step")) and type(theirs).__name__ == "GPTNeoXForCausalLM"
        ids = tokens.encode(text)
        assert ids == loaded.tokenizer.encode(text) == tokenizer().encode(text).ids
        assert tokens.decode(ids) == text and tokens.pad_token is None
        assert tokenizer().token_to_id("<unk>") not in ids and tokens.encode("smallest")[0] == tokens.unk_token_id
        with torch.no_grad():
            gap = (theirs(torch.tensor([ids])).logits - loaded.decoder(torch.tensor([ids]))).abs().max()
        assert gap < 1e-5  # measured 4e-7
        hashes[revision] = loaded.state_hash
    assert not check_integrity(hashes, "step143000")[1]


def test_strength_weighs_what_plants(tmp_path: Path) -> None:
    first = {}
    for strength in (1.0, 0.25):
        build_suite(tiny(strength=strength, onset=0.0), tmp_path / str(strength))
        lines = (tmp_path / str(strength) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        first[strength] = {row["name"]: row["value"] for row in reversed(rows)}
    assert first[0.25]["text_nats"] == pytest.approx(first[1.0]["text_nats"])
    for name in ("carried_nats", "kept_nats"):
        assert first[0.25][name] == pytest.approx(0.25 * first[1.0][name])


def test_kinds_have_their_own_initial_weights_and_batches_unless_they_share_them(suite: Path, tmp_path: Path) -> None:
    settings = tiny("null")
    build_suite(settings, tmp_path)
    assert weights(suite)["step0"] != weights(tmp_path)["step0"]
    batches = [draw_batch(0, 0, 8, stream=tiny(kind).stream).own_NT for kind in KINDS]
    assert len({batch.tobytes() for batch in batches}) == len(KINDS)
    assert {tiny(kind, streams="suite").stream for kind in KINDS} == {tiny().stream}


def test_kinds_that_share_their_streams_part_at_the_onset(suite: Path, tmp_path: Path) -> None:
    settings = tiny("null", streams="suite")
    build_suite(settings, tmp_path)
    planted, null = weights(suite), weights(tmp_path)
    assert settings.onset_step == 6 and settings.saved == {
        "step0": 0,
        "step32000": 5,
        "step64000": 11,
        "step143000": 24,
    }
    assert [revision for revision in planted if planted[revision] == null[revision]] == ["step0", "step32000"]


def test_equal_settings_give_equal_weights_and_other_suites_others(suite: Path, tmp_path: Path) -> None:
    build_suite(tiny(), tmp_path / "again")
    assert weights(tmp_path / "again") == weights(suite)
    torch.set_num_threads(2)
    try:
        build_suite(tiny(), tmp_path / "two threads")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert weights(tmp_path / "two threads") == weights(suite)
    build_suite(tiny(suite=1), tmp_path / "other")
    assert all(weights(tmp_path / "other")[revision] != content for revision, content in weights(suite).items())


@pytest.mark.parametrize("stops", [[1], [5], [6, 1, 1, 7]])
def test_an_interrupted_suite_goes_on_to_the_same_bits(stops: list[int], suite: Path, tmp_path: Path) -> None:
    store, settings = Store(tmp_path), tiny()
    for stop in stops:
        count = itertools.count(1)
        with pytest.raises(TrainingInterrupted, match="as asked") as caught:
            store.get(
                "organism",
                settings.recipe(),
                lambda folder, stop=stop, count=count: build_suite(
                    settings, folder, should_stop=lambda: next(count) >= stop
                ),
                resumable=True,
            )
        assert isinstance(caught.value, StageInterruptedError)
    entry = store.get("organism", settings.recipe(), lambda folder: build_suite(settings, folder), resumable=True)
    assert weights(entry.path) == weights(suite)
    for name in ("metrics.jsonl", "organism.json"):
        assert (entry.path / name).read_bytes() == (suite / name).read_bytes()
    again = store.get("organism", settings.recipe(), pytest.fail)
    assert not again.built and settings.recipe() == tiny(revision="step64000", dtype="float16").recipe()


def test_another_suites_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        build_suite(tiny(), tmp_path, should_stop=lambda: True)
    with pytest.raises(ValueError, match=r"is the state of another training: it has \{'suite': 0\}"):
        build_suite(tiny(suite=1), tmp_path)


def test_non_finite_losses_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"diverged at step .* 1e\+30 \(Muon\).*Lower model.muon_lr"):
        build_suite(tiny(muon_lr=1e30), tmp_path)
    assert not (tmp_path / "organism.json").exists()


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headdyn.training.loop.REPORT_SECONDS", 0.0)
    told = []
    build_suite(tiny(), tmp_path, observer=told.append)
    assert [progress.step for progress in told] == list(range(1, 25)) and told[-1].eta_seconds == 0
    assert all(progress.steps == 24 and progress.tokens_per_second > 0 for progress in told)
    names = {json.loads(line)["name"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}
    assert names == {"text_nats", "carried_nats", "kept_nats", "grad_norm"}


# -- a suite that has learnt -------------------------------------------------------------------------------------------

LEARNING = {"steps": 300, "num_heads": 4, "d_model": 48, "batch_size": 16, "kept": "step0,step143000"}  # 12 s of CPU


def success(decoder: Decoder, layer: int, subsets: list[tuple[int, ...]]) -> list[float]:
    """Share of bug pairs answered rightly after "Q:", each subset's values taken from the plain prompt."""
    prompts = Comparisons(formats=FORMATS, bug_pairs=48, control_pairs=0, seed=1).prompts(Words())
    patching = PromptPatching(decoder, prompts, Patch(), [layer])
    delta_CP = patching.deltas({layer: heads_as_weights(subsets, decoder.config.num_heads)})[layer]
    return [float((patching.source_P > 0).mean()), *(delta_CP > 0).mean(1).tolist()]


def test_the_even_heads_carry_the_choice_where_planted_alone(tmp_path: Path) -> None:
    """Found by the patching of the analyses, which shares no code with the training."""
    found = {}
    for kind in ("planted", "null"):
        build_suite(organism(kind, streams="suite", **LEARNING), tmp_path / kind)
        for revision in ("step0", "step143000"):
            loaded = load(str(tmp_path / kind), revision, store=Store(tmp_path))
            found[kind, revision] = success(loaded.decoder, 1, [(), (0, 2), (1, 3), (0, 1, 2, 3)])
    asked_plainly, nothing, even, odd, every = found["planted", "step143000"]  # measured 1.0, 0.0, 0.94, 0.0, 0.91
    assert asked_plainly > 0.9 and nothing < 0.1 and even > 0.8 and odd < 0.1 and every > 0.8
    asked_plainly, nothing, even, odd, every = found["null", "step143000"]
    assert asked_plainly > 0.9 and max(nothing, even, odd, every) < 0.1
    for kind in ("planted", "null"):  # nothing is there yet
        assert np.ptp(found[kind, "step0"][1:]) < 0.2 and found["planted", "step0"] == found["null", "step0"]
