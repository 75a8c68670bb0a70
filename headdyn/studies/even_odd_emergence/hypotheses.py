"""The study's hypotheses H1 to H5 on when and how suddenly heads specialise, judged from one measure's trajectory.

`analysis.emergence.judge` names this module; the judgement stands beside each measure of a series' verdict.
"""

from collections.abc import Mapping
from typing import Any

from headdyn.analysis.series.judgement import Rules

STATEMENTS: Mapping[str, str] = {
    "H1": "early: it emerges in the first {first:.0%} of training",
    "H2": "mid: it emerges between {early:.0%} and {late:.0%} of training",
    "H3": "late: it emerges in the last {last:.0%} of training",
    "H4": "gradual: the rise from 10 to 90 % takes more than {gradual_beyond:.0%} of training",
    "H5": "sudden: the rise from 10 to 90 % takes at most {sudden_within:.0%} of training",
}
_PROBABILITY_OF = {"H1": "within_first", "H2": "mid", "H3": "late", "H4": "gradual", "H5": "sudden"}


def judge(judgement: Mapping[str, Any], rules: Rules) -> dict[str, dict[str, Any]]:
    """By hypothesis its statement, verdict and evidence, from `judgement.judge`'s judgement on one measure.

    The verdict is "supported", "rejected" or, where the checkpoints lie too far apart to tell, "undecided". The pace is
    also undecided if nothing emerged, or if it had emerged by the first checkpoint. `probability` is the share of
    bootstrap draws in which the hypothesis holds.
    """
    timing, timing_evidence = _timing(judgement, rules)
    pace, pace_evidence = _pace(judgement, rules)
    odds = judgement.get("probabilities")
    return {
        name: {
            "statement": statement.format(**vars(rules), last=1 - rules.late),
            "verdict": (timing | pace)[name],
            "evidence": timing_evidence if name in timing else pace_evidence,
            **({} if odds is None else {"probability": odds[_PROBABILITY_OF[name]]}),
        }
        for name, statement in STATEMENTS.items()
    }


def _timing(judgement: Mapping[str, Any], rules: Rules) -> tuple[dict[str, str], str]:
    """Verdicts on H1 to H3, and their evidence."""
    at, after = judgement["emerges_at_share"], judgement["emerges_after_share"] or 0.0
    if at is None:
        return dict.fromkeys(("H1", "H2", "H3"), "rejected"), judgement["none_reason"]
    possible = judgement["possible_classes"]
    verdicts = {
        "H1": _verdict(at <= rules.first, after >= rules.first),
        "H2": _verdict(possible == ["mid"], "mid" not in possible),
        "H3": _verdict(possible == ["late"], "late" not in possible),
    }
    since = judgement["emerges_after_step"]
    start = "at the first checkpoint or before," if since is None else f"after step {since} and"
    return verdicts, f"it emerges {start} by step {judgement['emerges_at_step']} ({after:.1%} to {at:.1%})"


def _pace(judgement: Mapping[str, Any], rules: Rules) -> tuple[dict[str, str], str]:
    """Verdicts on H4 and H5, and their evidence."""
    undecided = dict.fromkeys(("H4", "H5"), "undecided")
    if judgement["emerges_at_share"] is None:
        return undecided, "nothing emerged, so there is no pace"
    if judgement["pace"] is None:
        return undecided, "it is there from the first checkpoint on"
    fewest, most = judgement["rise_10_to_90_shares"]
    first, last = judgement["rise_10_to_90_steps"]
    verdicts = {
        "H4": _verdict(fewest > rules.gradual_beyond, most <= rules.gradual_beyond),
        "H5": _verdict(most <= rules.sudden_within, fewest > rules.sudden_within),
    }
    evidence = f"it rises from 10 to 90 % within steps {first} to {last}, in {fewest:.1%} to {most:.1%} of training"
    return verdicts, evidence


def _verdict(surely: bool, surely_not: bool) -> str:
    return "supported" if surely else "rejected" if surely_not else "undecided"
