"""Clusters of heads by their weights over eight checkpoints of Pythia-160m, and what the clusters do."""

from headdyn.studies import Study, deferred

STUDY = Study(
    title="Weight clusters",
    question="When do the heads of a layer fall into clusters by their weights, and do the clusters say what heads do?",
)

sections = deferred("headdyn.studies.weight_clusters.page", "sections")
