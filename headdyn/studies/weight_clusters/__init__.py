"""Clusters of heads by their weights over eight checkpoints of Pythia-160m, and what the clusters do."""

from headdyn.studies import deferred

sections = deferred("headdyn.studies.weight_clusters.page", "sections")
