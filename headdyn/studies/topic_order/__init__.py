"""The matrix of eight trainings: attention (MHA, GQA) × order of the data × position encoding."""

from headdyn.studies import deferred

sections = deferred("headdyn.studies.topic_order.page", "sections")
headlines = deferred("headdyn.studies.topic_order.instruments", "headlines")
