"""Do the tests notice when the code is wrong? `python -m tests.mutants` (`make mutants`) changes it at random places.

A mutant is a module with one operator, number, comparison or condition changed. Of each part of the package some are
sampled, and each meets the tests of its module; it is killed if one of them fails. Results are appended as they come:
the same command goes on where it stopped, and `--again` tries only those that survived, after tests were added.
A survivor that no test could kill, because what the module computes is the same, is listed by hand with the reason in
experiments/reliability/equivalent_mutants.json.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "experiments" / "reliability" / "mutants.jsonl"
DRAWING = ("chart_parts", "figures", "pictures", "special_charts")
CORE = sorted(path.stem for path in (ROOT / "headdyn" / "core").glob("[a-z]*.py"))
SWEEP = ("effects", "factors", "groups", "jobs", "matched_loss", "outcomes", "record", "series")
# Each part of the package, and how many of its mutants are tried
PARTS = {
    "core": (60, [f"headdyn/core/{name}.py" for name in CORE if name not in DRAWING]),
    "drawing": (20, [f"headdyn/core/{name}.py" for name in DRAWING]),
    "sweep statistics": (40, [f"headdyn/sweep/{name}.py" for name in SWEEP]),
    "selectivity": (18, ["headdyn/analysis/selectivity.py"]),
    "judgement": (40, [f"headdyn/analysis/series/{name}.py" for name in ("judgement", "onset")]),
    "sums of attention": (
        20,
        [f"headdyn/analysis/{name}.py" for name in ("attention_measure", "estimates", "pattern_sums")],
    ),
}
HEAVY = ("torch", "numpy", "scipy.stats", "pyarrow.parquet", "sklearn.linear_model", "hypothesis", "pytest", "hydra",
         "pydantic", "beartype", "jaxtyping", "altair", "transformers")  # fmt: skip
FURTHER = {
    "headdyn/core/cache.py": ("tests/test_doctor.py",),
    "headdyn/core/chart_parts.py": ("tests/core/test_figures.py",),
    "headdyn/core/special_charts.py": ("tests/core/test_figures.py",),
    "headdyn/core/json_files.py": ("tests/core/test_run_folder.py",),
    "headdyn/core/machine.py": ("tests/test_launchers.py",),
    "headdyn/core/records.py": ("tests/analysis/test_contract.py",),
    "headdyn/core/settings.py": ("tests/test_config.py",),
    "headdyn/core/stopping.py": ("tests/test_launchers.py",),
    "headdyn/sweep/jobs.py": ("tests/report/test_run_page.py",),
    "headdyn/sweep/record.py": ("tests/report/test_sweep_page.py",),
    "headdyn/sweep/series.py": ("tests/analysis/series/test_emergence.py",),
    "headdyn/analysis/attention_measure.py": ("tests/analysis/test_attention.py",),
    "headdyn/analysis/estimates.py": ("tests/analysis/test_attention.py",),
    "headdyn/analysis/pattern_sums.py": ("tests/analysis/test_attention.py",),
    "headdyn/analysis/selectivity.py": ("tests/analysis/test_attention.py",),
    "headdyn/analysis/series/judgement.py": ("tests/analysis/series/test_emergence.py",),
    "headdyn/analysis/series/onset.py": ("tests/analysis/series/test_emergence.py",),
}
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
# Mistakes by hand, each once seen to pass all tests: what is wrong, the module, its text and what becomes of it, tests.
BY_HAND = (
    ("precision left out of the run hash", "headdyn/config.py", '_NOT_HASHED = (', '_NOT_HASHED = ("precision", ', "tests/test_config.py"),
    ("precision left out of the resume recipe", "headdyn/training/next_token.py", '"precision": self.precision,', "", "tests/training/test_resume.py"),
    ("train and val draw the same words", "headdyn/data/micro_languages.py", 'f"micro_languages/{split} tokens"', '"micro_languages/train tokens"', "tests/data/test_micro_languages.py"),
    ("label swaps include the own sequence", "headdyn/analysis/selectivity.py", "1 + generator.choice(count - 1", "generator.choice(count", "tests/analysis/test_selectivity.py"),
    ("the sign-flip test is one-sided", "headdyn/core/statistics.py", "np.abs(signs_RN @ columns) >= np.abs(observed) - slack", "signs_RN @ columns >= observed - slack", "tests/core/test_statistics.py"),
    ("selectivity tested one-sided", "headdyn/analysis/estimates.py", "controls_NJ), generator, draws=draws)", 'controls_NJ), generator, draws=draws, alternative="greater")', "tests/analysis/test_estimates.py"),
    ("attention tested one-sided", "headdyn/analysis/estimates.py", "controls_NJ), generator, draws=draws)", 'controls_NJ), generator, draws=draws, alternative="greater")', "tests/analysis/test_attention.py"),
    ("probes tested one-sided", "headdyn/analysis/probes_measure.py", "best_N[:, None], generator, draws=settings.sign_flips)", 'best_N[:, None], generator, draws=settings.sign_flips, alternative="greater")', "tests/analysis/test_probes.py"),
    ("circuits tested one-sided", "headdyn/analysis/circuits_measure.py", "draws_test(value_LH, null_R)", 'draws_test(value_LH, null_R, alternative="greater")', "tests/analysis/test_circuits.py"),
    ("prompt pairs tested one-sided", "headdyn/analysis/interventions/pair_rows.py", "sign_flip_test(values_PX, self.generator, draws=self.sign_flips)", "sign_flip_test(values_PX, self.generator, draws=self.sign_flips) / 2", "tests/analysis/interventions/test_pair_rows.py"),
    ("matched loss keeps recalibrated arms", "headdyn/sweep/matched_loss.py", '"recalibration" not in run.scalars or recalibrated', "True", "tests/sweep/test_matched_loss.py"),
    ("TensorLens targets reach the last token", "headdyn/analysis/tensorlens_measure.py", "length - 2, count + 1", "length - 1, count + 1", "tests/analysis/test_tensorlens.py"),
    ("q by outcome, not by family", "headdyn/sweep/effects.py", "effects = with_q([row for row in rows if row[\"kind\"] in (CONTRAST, SLOPE, INTERACTION)])", "effects = [r for o in dict.fromkeys(row[\"outcome\"] for row in rows) for r in with_q([row for row in rows if row[\"kind\"] in (CONTRAST, SLOPE, INTERACTION) and row[\"outcome\"] == o])]", "tests/sweep"),
    ("the half maximum is not redrawn", "headdyn/analysis/series/judgement.py", "onset.half_of_highest(draw_BK) if", "float(onset.half_of_highest(measure.value_K)) if", "tests/analysis/series/test_judgement.py"),
    ("a 90 % interval is called 95", "headdyn/analysis/series/judgement.py", "[0.025, 0.975]", "[0.05, 0.95]", "tests/analysis/series/test_judgement.py"),
    ("recovered by the best loss", "headdyn/training/drope.py", '"recovered": losses[done] <= limit', '"recovered": min(losses.values()) <= limit', "tests/training/test_drope.py"),
    ("cluster_ratio's null by its own cross count", "headdyn/analysis/attention_measure.py", "length - counts.cross_swapped", "length - counts.cross", "tests/analysis/test_attention.py"),
    ("the splits' 95th percentile without abs", "headdyn/analysis/series/split_trajectory.py", "np.quantile(np.abs(every_KS)", "np.quantile((every_KS)", "tests/analysis/series/test_emergence.py"),
    ("the strongest split without abs", "headdyn/analysis/series/onset.py", "np.sort(np.abs(strength_KS).max(0))", "np.sort(strength_KS.max(0))", "tests/analysis/series/test_onset.py"),
    ("heads above 0 by p", "headdyn/studies/topic_order/instruments.py", 'row["q"] < 0.05', 'row["p"] < 0.05', "tests/studies/topic_order"),
    ("for good by the first crossing", "headdyn/analysis/series/judgement.py", "int(onset.departure(value_K > measure.band_K))", "int((value_K > measure.band_K).argmax())", "tests/analysis/series/test_judgement.py"),
    ("the blind bigram counts the wrong topic", "headdyn/data/micro_languages.py", "train.topics_NT[:, 1:]) + 1", "train.topics_NT[:, :-1]) + 1", "tests/data/test_micro_languages.py"),
    ("the commonest topic of the test split", "headdyn/analysis/probes_measure.py", "np.bincount(fit.topics_NT.ravel(), minlength=num_topics).argmax()", "np.bincount(test.topics_NT.ravel(), minlength=num_topics).argmax()", "tests/analysis/test_probes.py"),
    ("norms in bfloat16", "headdyn/models/layers.py", "return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x", "return x", "tests/models/test_decoder.py"),
    ("document pairs with replacement", "headdyn/analysis/pattern_sums.py", "max(1, count * (count - 1))", "max(1, count * count)", "tests/analysis/test_pattern_sums.py tests/analysis/test_attention.py"),
    ("covariance of the mean by N²", "headdyn/core/statistics.py", "(units * (units - 1))", "(units * units)", "tests/core/test_statistics.py"),
    ("sudden only below its bound", "headdyn/analysis/series/judgement.py", "most_B <= rules.sudden_within", "most_B < rules.sudden_within", "tests/analysis/series/test_judgement.py"),
    ("equally likely is a success", "headdyn/analysis/interventions/pair_rows.py", "np.asarray(delta) > 0", "np.asarray(delta) >= 0", "tests/analysis/interventions/test_pair_rows.py"),
    ("clear of the plateau by the value alone", "headdyn/sweep/words.py", 'loss.get("ci_high", loss["value"]) < mixture', 'loss["value"] < mixture', "tests/sweep/test_words.py"),
    ("checkpoints as arms of a design", "headdyn/sweep/effects.py", 'run.factors.get("revision") for run in group.runs}) > 1', 'run.factors.get("revision") for run in group.runs}) > 10**6', "tests/sweep"),
)  # fmt: skip
CPU_SECONDS, WALL_SECONDS = 150, 600


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed, for each thing that can be."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[place] = SWAPS[type(operator)]()
            yield changed
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        changed = copy.deepcopy(node)
        changed.op = SWAPS[type(node.op)]()
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], ast.Load())
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(copy.deepcopy(node.value), NAMES[node.attr], ast.Load())
    elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield changed


def parts(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every place of the tree that may be changed: not in types, decorators, the text of errors or formatted text."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(value, ast.Raise | ast.JoinedStr):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                continue
            yield node, name, place
            yield from parts(child)


Key = tuple[str, str, int]


@dataclass(frozen=True)
class Mutant:
    """A module with one thing changed: its line, what is changed, the whole source, and the tests it meets."""

    module: str
    line: int
    change: str
    source: str
    tests: tuple[str, ...]
    place: int = 0  # which of the module's equal changes it is

    @property
    def key(self) -> Key:
        """What identifies it while lines are added above it."""
        return self.module, self.change, self.place


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module."""
    tree, made, equal = ast.parse((ROOT / module).read_text(encoding="utf-8")), [], Counter[str]()
    tests = tuple(tests_of(module))
    for parent, name, place in parts(tree):
        holder = getattr(parent, name)
        node = holder if place is None else holder[place]
        for changed in mutations(node):
            if place is None:
                setattr(parent, name, changed)
            else:
                holder[place] = changed
            change = " -> ".join(ast.unparse(n).splitlines()[0][:70] for n in (node, changed))
            source = ast.unparse(ast.fix_missing_locations(tree))
            made.append(Mutant(module, node.lineno, change, source, tests, equal[change]))
            equal[change] += 1
            if place is None:
                setattr(parent, name, node)
            else:
                holder[place] = node
    return made


def sampled(part: str, seed: int, earlier: Container[Key] = ()) -> list[Mutant]:
    """The part's sample: its mutants in an order that other mutants have no say in, as many as PARTS tries.

    Those of `earlier` samples are left out.
    """
    count, modules = PARTS[part]
    every = [mutant for module in modules for mutant in mutants(module) if mutant.key not in earlier]
    return sorted(every, key=lambda mutant: hashlib.sha256(repr((seed, mutant.key)).encode()).digest())[:count]


def by_hand() -> list[Mutant]:
    """The mistakes of BY_HAND; each text that is changed stands once in its module."""
    made = []
    for what, module, old, new, tests in BY_HAND:
        source = (ROOT / module).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{module} holds {old!r} {source.count(old)} times"
        line = source[: source.index(old)].count("\n") + 1
        made.append(Mutant(module, line, what, source.replace(old, new), tuple(tests.split())))
    return made


def tests_of(module: str) -> list[str]:
    """The test that mirrors the module, then what else tests it: of a sweep's statistics tests/sweep, but no sweep."""
    path = Path(module).relative_to("headdyn")
    mirror = Path("tests") / path.with_name(f"test_{path.name}")
    sweep = [test for test in sorted((ROOT / "tests" / "sweep").glob("test_*.py")) if test.stem != "test_own_metric"]
    beside = sweep if path.parts[0] == "sweep" else []
    further = [*(test.relative_to(ROOT) for test in beside), *map(Path, FURTHER.get(module, ()))]
    return [test.as_posix() for test in dict.fromkeys((mirror, *further)) if (ROOT / test).exists()]


def outcome(folder: Path, tests: Sequence[str]) -> str:
    """Run the tests in a copy of this process, which has imported what takes long. `survived`, or how it was killed."""
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "headdyn")]:
            del sys.modules[name]
        import pytest

        assert tests
        os._exit(int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow", *tests])))
    begun = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > WALL_SECONDS:
            os.killpg(child, 9)
            os.waitpid(child, 0)
            return "took too long"
        time.sleep(0.05)
    if os.WIFSIGNALED(status):
        return "took too long"
    return "killed" if os.WEXITSTATUS(status) else "survived"


def by_key(record: Path) -> dict[Key, dict[str, Any]]:
    """The lines of a record of mutants, by what identifies each."""
    lines = map(json.loads, record.read_text(encoding="utf-8").splitlines())
    return {(line["module"], line["change"], line["place"]): line for line in lines}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--by-hand", action="store_true", help="the mistakes of BY_HAND in place of random ones")
    parser.add_argument("--again", action="store_true", help="try those that survived once more, and no others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without", type=Path, nargs="+", default=[], help="records of earlier samples, for one of others"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    earlier = {key for record in chosen.without for key in by_key(record)}
    samples = {part: sampled(part, chosen.seed, earlier) for part in chosen.parts}
    parts = {"by hand": by_hand()} if chosen.by_hand else samples
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    now = {mutant.key for made in parts.values() for mutant in made}
    record = by_key(chosen.out) if chosen.out.exists() else {}
    # What was tried of code that is another by now is no part of the sample any more.
    record = {key: line for key, line in record.items() if key in now or line["part"] not in parts}
    survivors = {key for key, line in record.items() if line["outcome"] == "survived"}
    waiting = [
        (part, mutant)
        for part, made in parts.items()
        for mutant in made
        if (mutant.key in survivors if chosen.again else mutant.key not in record)
    ]
    random.Random(chosen.seed).shuffle(waiting)  # so that an unfinished run is a sample too
    print(f"{len(waiting)} mutants to try, {len(record)} on record", flush=True)
    for name in HEAVY:
        importlib.import_module(name)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(
            ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "outputs", "multirun", "*.svg")
        )
        sound: dict[tuple[str, ...], bool] = {}
        for part, mutant in waiting:
            if mutant.tests not in sound:
                sound[mutant.tests] = outcome(folder, mutant.tests) == "survived"
                if not sound[mutant.tests]:
                    log = (folder / "log.txt").read_text(encoding="utf-8")
                    print(f"the tests of {mutant.module} fail without a mutant: {log[-2000:]}", flush=True)
            if not sound[mutant.tests]:
                continue
            original = (folder / mutant.module).read_text(encoding="utf-8")
            (folder / mutant.module).write_text(mutant.source, encoding="utf-8")
            entry = {"part": part, **{name: getattr(mutant, name) for name in ("module", "line", "change", "place")}}
            record[mutant.key] = entry | {"outcome": outcome(folder, mutant.tests)}
            (folder / mutant.module).write_text(original, encoding="utf-8")
            chosen.out.write_text("".join(json.dumps(line) + "\n" for line in record.values()), encoding="utf-8")
    for part in dict.fromkeys(line["part"] for line in record.values()):
        outcomes = Counter(line["outcome"] for line in record.values() if line["part"] == part)
        print(f"{part}: {dict(outcomes)}")
    return int(len(sound) != sum(sound.values()))


if __name__ == "__main__":
    raise SystemExit(main())
