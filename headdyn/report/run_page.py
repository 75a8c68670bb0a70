"""One run's page: answers, outcomes and the main picture; all other sections are folded."""

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from headdyn.core.run_folder import add_checksums
from headdyn.report.blocks import Section
from headdyn.report.extension import added
from headdyn.report.page import write_page
from headdyn.report.sections import answers, glossary, heads, jobs, prompts, quality, runs, text_topics
from headdyn.sweep.factors import CHOICES, level_label
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SWEEP, SweepRecord, single_job

# A run is shown as a sweep of one job, so the sections take a sweep's record here too.
SECTIONS: Sequence[Callable[[SweepRecord], Section | None]] = (
    answers.section,
    runs.outcomes,
    prompts.splits,
    prompts.orders,
    prompts.groups,
    prompts.clusterings,
    heads.standing_out,
    heads.section,
    runs.numbers,
    text_topics.section,
    quality.of_run,
    glossary.section,
    jobs.provenance,
)


def write_run_page(folder: Path) -> Path:
    """Write report.html of a finished run from its records alone, and the figures of its training into figures/."""
    job = single_job(folder)
    files = {folder / "figures" / f"training_{name}.json": f for name, f in runs.training_figures(job).items()}
    for path, figure in files.items():
        figure.save(path)
    add_checksums(folder, list(files))
    sweep = SweepRecord.of(job)
    own = [section for make in SECTIONS if (section := make(sweep)) is not None]
    others = [*added("sections", sweep), *runs.figures(sweep)]
    opened = [section for section in (*own, *others) if not section.folded]
    folded = [section for section in (*others, *own) if section.folded]
    return write_page(folder / "report.html", title(job), _lead(job, folder), [*opened, *folded], runs={})


def title(job: Job) -> str:
    """The page's title: `EleutherAI/pythia-160m at step 143000`, `mini qwen3: MHA, shuffled, RoPE, seed 0`."""
    checkpoint, factors = job.run.manifest.get("checkpoint", {}), job.factors
    if checkpoint.get("name"):
        revision = str(checkpoint.get("revision") or "")
        step = revision.replace("step", "step ", 1) if revision[4:].isdigit() else revision
        name = str(checkpoint["name"])
        name = name if "/" in name else name.replace("_", " ")
        return f"{name} at {step}" if step else name
    levels = [level_label(name, factors[name]) for name in CHOICES if name in factors]
    model = str(factors.get("model", job.run.name)).replace("_", " ")
    words = [*levels, f"seed {factors['seed']}"] if "seed" in factors else levels
    return f"{model}: {', '.join(words)}" if words else model


def _lead(job: Job, folder: Path) -> Markup:
    factors = " · ".join(f"{name.replace('_', ' ')} {level}" for name, level in job.factors.items())
    line = Markup('<p class="soft">{} · {}').format(job.run.name, factors)
    if (folder.parent / SWEEP).exists():
        line += Markup(' · <a href="../report.html">the sweep it is part of</a>')
    return line + Markup("</p>")
