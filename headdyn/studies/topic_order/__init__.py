"""The matrix of eight trainings: attention (MHA, GQA) × order of the data × position encoding."""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Topic order",
    question=(
        "Does training on topic after topic, instead of on shuffled data, leave structure in attention heads that "
        "lasts when position encodings are dropped?"
    ),
)

sections = deferred("headdyn.studies.topic_order.page", "sections")
headlines = deferred("headdyn.studies.topic_order.instruments", "headlines")
