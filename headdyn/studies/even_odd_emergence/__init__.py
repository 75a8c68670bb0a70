"""Even heads against odd ones at eleven checkpoints of Pythia-160m, by activation patching."""

from __future__ import annotations

from headdyn.studies import Study

STUDY = Study(
    title="Even and odd heads",
    question=(
        "When in training do the even heads of a layer come to answer “which is bigger, 9.8 or 9.11?” rightly, and "
        "the odd ones not?"
    ),
)
