"""Every bad setting is refused by name before any work, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from headdyn.checking import check
from headdyn.composition import CONF, explain, plain_arguments
from headdyn.core.settings import ConfigError
from headdyn.data.conversations import Conversations
from headdyn.data.micro_languages import MicroLanguages
from headdyn.plan import make_plan
from headdyn.run import main


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    return check(cfg, cfg.hydra.runtime.choices)


def refusal(*arguments: str) -> str:
    with pytest.raises((ConfigError, HydraException)) as caught:
        make_plan(plain_arguments(arguments))
    return explain(caught.value, arguments)


@pytest.mark.parametrize("arguments", [["experiment=matrix", "seed=0,1"], ["attention=mha,gqa", "train.steps=40,50"]])
def test_jobs_of_a_sweep_are_what_each_composed_alone_is(arguments):
    plan = make_plan(["-m", "mode=smoke", *arguments])
    for job in plan.jobs:
        own = [f"{key}={job.factors[key]}" for key in ("attention", "data_ordering", "position_enc", "seed")]
        own += [f"train.steps={job.train.steps}", f"swept=[{','.join(job.swept)}]"]
        alone = composed("mode=smoke", *own, *(a for a in arguments if a.startswith("experiment=")))
        assert (job.resolved, job.hash, job.analysis, job.data) == (
            alone.resolved,
            alone.hash,
            alone.analysis,
            alone.data,
        )
    assert len({job.hash for job in plan.jobs}) == len(plan.jobs) > 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attention=mqa"], ["attention=mqa names no option; attention is gqa, mha"]),
        (["train.stepz=3"], ["train.stepz", "did you mean train.steps"]),
        (["+train.foo=3"], ["train.foo", "train.steps"]),
        (["trian.steps=3"], ["trian.steps", "did you mean train.steps"]),
        (["trian.steps=3", "trian.stepz=4"], ["unknown key trian.steps"]),
        (["trian.steps=3", "~nothing", "analysis.loss="], ["unknown key trian.steps"]),
        (["+foo=3"], ["unknown key foo"]),
        (["train.steps=abc"], ["train.steps='abc'", "int"]),
        (["train.steps=10.5"], ["train.steps=10.5", "int"]),
        (["train.clip_norm=true"], ["train.clip_norm=True", "number"]),
        (["train.adamw_betas=[1,2,3]"], ["3 entries, not 2"]),
        (["train.adamw_betas=[1,2]"], ["train.adamw_betas[0]=1 must be below 1"]),
        (["train.adamw_betas=[nan,0.9]"], ["train.adamw_betas[0]=nan must be a finite number"]),
        (["train.muon_lr=inf"], ["train.muon_lr=inf must be a finite number"]),
        (["train.steps=???"], ["train.steps is missing"]),
        (["attention.num_kv_heads=3"], ["num_kv_heads=3", "[1, 2, 4]"]),
        (["model.head_dim=7"], ["odd", "model.head_dim"]),
        (["data.min_segment=99"], ["data.min_segment=99", "data.sequence_length=128"]),
        (["data.target_gap_nats=9"], ["data.target_gap_nats=9", "ln V"]),
        (["train.snapshots=9999"], ["train.snapshots=9999", "2..801"]),
        (["train.batch_size=99999"], ["train.batch_size=99999", "data.train_sequences"]),
        (["train.eval_sequences=99999"], ["train.eval_sequences=99999", "data.val_sequences"]),
        (["ordering=topic", "data_ordering=shuffled"], ["ordering=topic", "only one"]),
        (["experiment=matrix"], ["add -m"]),
        (["attention=mha,gqa"], ["attention=mha,gqa", "add -m"]),
        (["device=tpu"], ["device='tpu'", "cuda"]),
        (["seed=-1"], ["seed=-1"]),
        (["model.kind=gpt5"], ["model.kind='gpt5'", "mini_qwen3"]),
        (["data._target_=nowhere.Corpus"], ["nowhere.Corpus"]),
        (["data._target_=os.system"], ["data._target_=os.system is Python's own", "dataclass"]),
        (["data._target_=torch.nn.Linear"], ["data._target_=torch.nn.Linear is torch's own", "dataclass"]),
        (["analysis.attention._target_=nowhere.Thing"], ["nowhere.Thing"]),
        (["analysis.attention.sequences=x"], ["analysis.attention.sequences='x'", "int"]),
        (["+analysis.attention.typo=1"], ["analysis.attention.typo"]),
        (["analysis=[loss]", "+analysis.probes.max_iterations=5"], ["analysis=[...]", "~analysis.probes"]),
        (["position_enc.keep_rotary=false"], ["recalibration"]),
        (["position_enc=drope", "position_enc.recalibration.steps=-1"], ["position_enc.recalibration.steps=-1"]),
        (["tracking.mode=sometimes"], ["tracking.mode='sometimes'", "offline"]),
        (["-m", "attention=mha,gqa", "model.num_heads=3", "model.head_dim=32"], ["num_heads=3"]),
        (["nonsense"], ["'nonsense' cannot be read", "KEY=VALUE"]),
        (["mode smoke"], ["'mode smoke' cannot be read", "KEY=VALUE"]),
        (["analysis=[atention]"], ["analysis=atention names no option; analysis is ablation"]),
        (["mode=1"], ["mode=1 names no option; mode is landmark"]),
        (["analysis=5"], ["analysis=5 names no option; analysis is ablation"]),
        (["analysis=[5]"], ["analysis=[5] names no option"]),
        (["-m", "data=3"], ["data=3 names no option; data is comparisons"]),
        (["-m", "mode=smoke,3"], ["mode=3 names no option; mode is landmark"]),
        (["model=null"], ["model=null names no option; model is gpt2"]),
        (["attention=[mha]"], ["attention must name one option"]),
        (["~model"], ["model must name one option"]),
        (["model.kind=[a]"], ["model.kind=['a'] is unknown"]),
        (["outcomes=3"], ["outcomes=3 must be a group of settings: primary, others"]),
        (["experiment=[matrix,wiki]"], ["add -m to run all of its conditions"]),
        (["position_enc={a:1}"], ["unknown key position_enc.a", "position_enc.name"]),
        (["--config-dir", "nowhere_at_all"], ["--config-dir nowhere_at_all is no folder"]),
        (["--config-dir", "tests", "trian.steps=1"], ["unknown key trian.steps", "did you mean train.steps"]),
        (["--config-dir", "tests", "train.stepz=1"], ["unknown key train.stepz", "did you mean train.steps"]),
        (["mode=smoke", "--config-dir", "tests", "nothing=1"], ["unknown key nothing"]),
        (["a" * 300 + "=1"], ["chooses a file that cannot be read: File name too long"]),
        (["--config-name", "other"], ["--config-name other is not supported", "--config-dir"]),
        (
            ["-m", "position_enc=rope,drope", "position_enc.recalibration.steps=600"],
            ["position_enc.recalibration.steps exists with position_enc=drope, not with position_enc=rope"],
        ),
        (["-m", "hydra.sweep.subdir=x"], ["hydra.sweep.subdir=x", "leave it out"]),
        (["hydra.run.dir=[1]"], ["hydra.run.dir"]),
        (["hydra.run.dir="], ["hydra.run.dir", "no folder"]),
        (["hydra.run.dir=/"], ["/ is the root of the file system; give hydra.run.dir"]),
        (["-m", "attention=mha,gqa", "seed=1,0,1"], ["2 jobs of this sweep are one run", "of attention, seed once"]),
        (["+hydra.foo=1"], ["unknown key hydra.foo", "hydra.mode"]),
        (["-m", "hydra.launcher=null"], ["hydra.launcher=null starts no job"]),
        (["--unknown"], ["unrecognized arguments: --unknown; --help"]),
        (["swept=[seed]"], ["swept=[seed] is filled in by -m"]),
        (["-m", "seed=range(0,0)"], ["seed=range(0,0) names no value"]),
        (["-m", "seed=glob(*)"], ["seed=glob(*) names no value"]),
        (["-m", "seed=interval(0,1)"], ["seed=interval(0,1) is no list of values"]),
        (["study=os"], ["study=os is no package"]),
        (["data.val_sequences=100000000000000000000"], ["data.val_sequences=1", "must be at most 2147483647"]),
        (["threads=100000"], ["threads=100000 must be at most 1024"]),
        (["workers=-1"], ["workers=-1 must be at least 0"]),
        (["-m", "hydra.sweeper.params=3"], ["hydra.sweeper.params=3"]),
        (["-m", "hydra.sweeper.params={attention:mha}"], ["is for presets", "-m KEY=VALUE,VALUE"]),
        (["study=headdyn.no_such_study"], ["study=headdyn.no_such_study", "imported"]),
        (
            ["-m", "train.adamw_betas=[0.9,0.95],[0.8,0.9]"],
            ["train.adamw_betas is swept, and one of its values is a list or a group"],
        ),
        (
            ["mode=smoke", "data_ordering=topic", "data_ordering.first_topic=3"],
            ["data_ordering.first_topic=3 is no topic", "set at most 2"],
        ),
        (["data=repeated_tokens"], ["data=repeated_tokens", "is trained here", "data=micro_languages"]),
        (["model=gpt2", "data=conversations"], ["data=conversations has symbols of its own", "repeated_tokens"]),
        (["model=gpt2", "analysis=[probes]"], ["analysis=probes", "topics"]),
        (["outcomes.primary=lozz"], ["outcomes.primary=lozz is measured by no analysis"]),
        (["outcomes.primary=[a,b]"], ["one primary outcome"]),
        (["-m", "outcomes.primary=a,b"], ["one primary outcome"]),
        (["outcomes.others=[lozz]"], ["outcomes.others=lozz is measured by no analysis"]),
        (["experiment=mechanistic", "model=organism_planted", "analysis.patching=null"], ["analysis.patching"]),
        (
            ["experiment=mechanistic", "model=organism_planted", "analysis.specialization.layer=99"],
            ["analysis.specialization.layer=99", "layers 0 to 2"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in "".join(value) else "",
)
def test_a_bad_setting_is_refused_by_name(arguments, words):
    message = refusal(*arguments)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_sweeps_choices_of_outcome_are_listed_once():
    choices = refusal("-m", "seed=0,1", "outcomes.primary=lozz").partition("choose from ")[2].split(", ")
    assert "loss_nats" in choices and len(set(choices)) == len(choices)


def test_the_primary_outcome_is_the_commands_then_the_presets_then_the_datas_then_selectivity(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}\n')

    def primary(*overrides):
        return composed("mode=smoke", *overrides).resolved["outcomes"]["primary"]

    of_text = ("data=local_text", f"data.path={text}", "data.num_topics=2")
    of_series = ("model=huggingface", "model.name=x/y", "experiment=head_emergence")
    assert primary() == primary("data=conversations") == primary("outcomes.primary=null") == "selectivity"
    assert primary("analysis=[loss]") == "loss_nats"  # selectivity is not measured
    assert primary(*of_text) == "selectivity_documents"
    assert primary(*of_text, "data.mask_documents=true") == "selectivity"
    assert primary(*of_text, *of_series) == "induction_top"
    assert primary(*of_text, *of_series, "outcomes.primary=selectivity") == "selectivity"


def test_a_configuration_error_answers_within_two_seconds_and_imports_nothing_heavy():
    program = (
        "import sys, time; begun = time.process_time(); from headdyn.run import main; status = main(sys.argv[1:]);"
        "import json; heavy = [m for m in ('torch', 'transformers', 'wandb', 'sklearn', 'datasets') if m in sys.modules];"
        "print(json.dumps([status, time.process_time() - begun, heavy]))"
    )
    for arguments in (["train.steps=abc"], ["--help"], ["-m", "experiment=matrix", "seed=0,1,2", "train.steps=abc"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        status, seconds, heavy = json.loads(done.stdout.splitlines()[-1])
        assert status == (0 if arguments == ["--help"] else 2)
        assert heavy == []
        assert seconds < 2


def test_help_shows_the_groups_and_three_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for group in (
        "attention: gqa, mha",
        "mode: landmark, laptop",
        "position_enc: drope",
        "protocol: corrected, original",
        "analysis:",
    ):
        assert group in shown
    assert shown.count("python -m headdyn.run") == 3


def test_ordering_is_short_for_data_ordering():
    assert plain_arguments(["-m", "ordering=topic,shuffled"]) == ["-m", "data_ordering=topic,shuffled"]
    alias = composed("ordering=topic")  # the alias group itself, as a raw compose sees it
    assert alias.factors["data_ordering"] == "topic"
    with pytest.raises(ConfigError, match="disagree"):
        composed("ordering=topic", "data_ordering=shuffled")


def test_the_originals_protocol_has_its_earlier_name_too():
    assert plain_arguments(["protocol=seed"]) == ["protocol=original"]
    assert plain_arguments(["-m", "protocol=corrected,seed", "seed=0,1"])[1:] == [
        "protocol=corrected,original",
        "seed=0,1",
    ]


def test_every_overridden_key_is_a_factor_and_a_swept_ones_level_is_in_the_runs_name():
    plan = make_plan(
        [
            "-m",
            "mode=smoke",
            "model.num_layers=1,2",
            "train.compile=false",
            "attention=mha,gqa",
            "seed=0,1",
            "threads=1",
        ]
    )
    assert len({job.name for job in plan.jobs}) == 8
    factors = plan.jobs[0].factors
    assert (factors["model.num_layers"], factors["train.compile"], factors["seed"]) == (1, False, 0)
    assert "threads" not in factors
    assert plan.jobs[0].swept == ("model.num_layers", "attention", "seed")
    assert plan.jobs[0].name == f"mha_shuffled_rope_num_layers-1_s0_{plan.jobs[0].hash}"
    # The name alone says what was swept: the hash is that of the same settings given to a single run.
    assert plan.jobs[0].hash == make_plan(["mode=smoke", "model.num_layers=1", "train.compile=false"]).jobs[0].hash
    lists = make_plan(["mode=smoke", "train.adamw_betas=[0.8,0.9]", "~analysis.circuits"]).jobs[0].factors
    assert set(lists) == {*("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "seed")}


@pytest.mark.parametrize("other", ["model.name=a,b", "model.dtype=float32,float64", "data.seed=0,1", "seed=0,1"])
def test_a_series_are_the_jobs_that_differ_in_their_revision_alone(other):
    arguments = ["model=huggingface", "model.name=a", "data=comparisons", "analysis=[circuits]"]
    plan = make_plan(["-m", *arguments, "model.revisions='step1,step2,step3'", other])
    members = {}
    for job in plan.jobs:
        members.setdefault(job.series, []).append(job.factors["revision"])
    assert list(members.values()) == [["step1", "step2", "step3"]] * 2


def test_two_learning_rates_are_two_series():
    plan = make_plan(["-m", "mode=smoke", "model=trained", "model.revisions=snapshots", "train.muon_lr=0.01,0.02"])
    assert len({job.series for job in plan.jobs}) == 2 and len(plan.jobs) == 12
    assert make_plan(["mode=smoke"]).jobs[0].series == ""


COMPANION = "{depth_twin: {_target_: their_twins.Lens, depth: 2}, on_prompts: {_target_: their_twins.OnPrompts}}"


def test_a_protocols_companions_run_beside_the_analyses_that_they_accompany(tmp_path, monkeypatch):
    (tmp_path / "their_twins.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Lens:\n"
        "    depth: int = 3\n"
        "    rows, needs, metrics = 'model', frozenset({'corpus'}), {}\n"
        "    def __call__(self, decoder, material, generator): ...\n"
        "class OnPrompts(Lens):\n"
        "    needs = frozenset({'prompts'})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    companions = [f"+protocol.companions.loss={COMPANION}", f"+protocol.companions.probes={COMPANION}"]
    run = make_plan(["mode=smoke", "analysis=[loss]", *companions]).jobs[0]
    assert list(run.analysis) == ["loss", "depth_twin"]  # probes does not run, and OnPrompts has no prompts here
    assert run.analysis["depth_twin"].depth == 2
    assert run.resolved["analysis"]["depth_twin"]["depth"] == 2 and "companions" not in run.resolved["protocol"]
    assert run.hash != make_plan(["mode=smoke", "analysis=[loss]"]).jobs[0].hash
    bad = refusal("mode=smoke", "+protocol.companions.loss={twin: {_target_: their_twins.Lens, depth: deep}}")
    assert bad == "protocol.companions.loss.twin.depth='deep' must be a valid integer"


def test_the_matrix_is_eight_runs_that_share_a_sweep_name():
    plan = make_plan(["-m", "experiment=matrix"])
    assert len({job.name for job in plan.jobs}) == 8
    factors = {(j.factors["attention"], j.factors["data_ordering"], j.factors["position_enc"]) for j in plan.jobs}
    assert len(factors) == 8
    assert all(isinstance(job.data, Conversations) and job.data.speaker == "announced" for job in plan.jobs)
    assert all(
        isinstance(j.data, MicroLanguages) for j in make_plan(["-m", "experiment=matrix", "protocol=original"]).jobs
    )
    segments = make_plan(["-m", "experiment=matrix", "data=micro_languages"]).jobs[0]
    assert isinstance(segments.data, MicroLanguages) and segments.data.generator == "matched"
    assert plan.folder == make_plan(["-m", "experiment=matrix"]).folder
    assert plan.folder != make_plan(["-m", "experiment=matrix", "train.steps=700"]).folder


def test_the_command_line_wins_over_a_preset():
    plan = make_plan(plain_arguments(["-m", "experiment=matrix", "attention=mha", "ordering=topic"]))
    assert {job.factors["attention"] for job in plan.jobs} == {"mha"}
    assert {job.factors["data_ordering"] for job in plan.jobs} == {"topic"}
    assert len(plan.jobs) == 2


def test_the_hash_follows_what_a_run_computes_and_nothing_else():
    base = composed().hash
    assert composed("tracking=none").hash == base
    assert composed("force=true").hash == base
    assert composed("train.steps=799").hash != base
    assert composed("seed=1").hash != base
    assert len({composed(f"precision={precision}").hash for precision in ("fp32", "bf16")}) == 2
    assert composed("position_enc=drope").hash != base


@pytest.mark.parametrize("mode", ["smoke", "laptop", "sanity", "run1", "v2"])
@pytest.mark.parametrize("protocol", ["corrected", "original"])
def test_every_mode_and_protocol_composes(mode, protocol):
    run = composed(f"mode={mode}", f"protocol={protocol}", "attention=gqa", "ordering=topic", "position_enc=drope")
    assert run.attention.num_kv_heads * 2 == run.model.num_heads
    assert run.data.generator == ("original" if protocol == "original" else "matched")
    assert run.data_ordering.within_block == ("fixed" if protocol == "original" else "shuffled")


def test_the_protocols_recalibrate_as_science_md_5_says():
    original = composed("mode=run1", "protocol=original", "position_enc=drope").position_enc.recalibration
    assert (original.count(10_000), original.warmup_share, original.lr_scale) == (100, 0.1, 0.1)
    corrected = composed("mode=run1", "position_enc=drope").position_enc.recalibration
    assert (corrected.count(10_000), corrected.lr_scale) == (2000, 1.0)


def test_the_sizes_are_the_original_studies():
    run1 = composed("mode=run1").decoder_config(4096)
    assert (run1.d_model, run1.num_layers, run1.num_heads, run1.head_dim, run1.d_ff) == (512, 8, 8, 64, 1376)
    sanity = composed("mode=sanity", "protocol=original")
    assert (sanity.data.vocab_size, sanity.data.concentration, sanity.train.steps) == (512, 100.0, 5000)
    assert sanity.train.warmup_steps == 250


def test_an_analysis_of_another_package_is_checked_by_its_own_class(tmp_path, monkeypatch):
    (tmp_path / "their_lens.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Lens:\n"
        "    depth: int = 3\n"
        "    name: str = 'x'\n"
        "    def __post_init__(self):\n"
        "        if self.depth < 1:\n"
        "            raise ValueError(f'depth={self.depth} must be at least 1')\n"
        "        if self.depth > 9:\n"
        "            raise LookupError('no such depth')\n"
        "    rows, needs, metrics = 'model', frozenset(), {}\n"
        "def function(): ...\n"
        "@dataclass(frozen=True)\n"
        "class Other:\n"
        "    depth: int = 3\n"
    )
    (tmp_path / "their_slip.py").write_text("class Lens(:\n")
    (tmp_path / "their_exit.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for settings, words in {
        "_target_: their_lens.Lens, depth: 0": "analysis.lens: depth=0 must be at least 1",
        "_target_: their_lens.Lens, depth: 10": "analysis.lens cannot be checked: LookupError: no such depth",
        "_target_: their_lens.Lens, depth: deep": "analysis.lens.depth='deep' must be a valid integer",
        "_target_: their_lens.Lens, dept: 1": "unknown key analysis.lens.dept; did you mean analysis.lens.depth",
        "_target_: their_lens.function": "analysis.lens._target_=their_lens.function is no dataclass",
        "_target_: their_lens.Other": "their_lens.Other is no analysis: it lacks needs, metrics, __call__",
        "_target_: their_slip.Lens": "analysis.lens._target_=their_slip.Lens cannot be imported: invalid syntax",
        "_target_: their_exit.Lens": "analysis.lens._target_=their_exit.Lens cannot be imported: SystemExit(",
        "_target_: nowhere.Lens": "No module named 'nowhere'; install it, or give the command in the folder that holds it",
    }.items():
        message = refusal(f"+analysis.lens={{{settings}}}")
        assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [unclosed\n", "a configuration file is no YAML: while parsing"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"- a\n- b\n", "analysis must name one option"),
        (b"_target_: their_bytes.Lens\n", "its file in conf/analysis begins with '# @package analysis.NAME'"),
        (b"# @package analysis.own\n_target_: their_bytes.Lens\n", "their_bytes.Lens cannot be imported"),
        (b"# @package analysis.own\n_target_: their_parts.Lens\n", "is no analysis: it lacks needs, metrics"),
    ],
)
def test_a_broken_option_of_the_users_own_is_refused_in_one_line(tmp_path, monkeypatch, content, words):
    (tmp_path / "conf" / "analysis").mkdir(parents=True)
    (tmp_path / "conf" / "analysis" / "own.yaml").write_bytes(content)
    (tmp_path / "their_bytes.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "their_parts.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Lens:\n"
        "    rows, needs, metrics = 'model', None, {'a': 3}\n"
        "    def __call__(self, decoder, material, generator): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("--config-dir", str(tmp_path / "conf"), "analysis=[own]")
    assert words in message and "\n" not in message


@pytest.mark.parametrize("content", ["", "# to be written\n", "null\n"])
@pytest.mark.parametrize("chosen", ["own", "[loss,own]"])
def test_an_analysis_whose_file_says_nothing_is_refused(content, chosen, tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "own.yaml").write_text(content)
    message = refusal("--config-dir", str(tmp_path), f"analysis={chosen}")
    assert message.startswith("analysis=own is an empty file") and "_target_" in message


@pytest.mark.parametrize("group", ["data", "data_ordering"])
def test_a_class_that_cannot_be_what_its_group_is_for_is_refused(group, tmp_path, monkeypatch):
    (tmp_path / "their_thing.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\nclass Thing: ...\n"
    )
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "own.yaml").write_text("_target_: their_thing.Thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("--config-dir", str(tmp_path / "conf"), f"{group}=own")
    assert message.startswith(f"{group}._target_=their_thing.Thing cannot be {group}: it lacks")


def test_a_glob_names_the_options_of_a_group():
    assert {job.factors["attention"] for job in make_plan(["-m", "attention=glob(*)"]).jobs} == {"gqa", "mha"}


def test_the_configuration_prints_resolved(capsys):
    assert main(["--cfg", "job", "--resolve", "mode=smoke"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.train.steps == OmegaConf.load(Path(CONF) / "mode" / "smoke.yaml").train.steps


def test_all_curves_of_head_emergence_are_dated_by_one_criterion():
    emergence = composed("model=trained", "experiment=head_emergence").analysis["emergence"]
    assert not emergence.thresholded and set(emergence.least) == set(emergence.continuous)
    heads = {name: least for name, least in emergence.least.items() if name.endswith("_top")}
    assert len(heads) == 4 and {least for name, least in heads.items() if name != "selectivity_top"} == {0.05}
