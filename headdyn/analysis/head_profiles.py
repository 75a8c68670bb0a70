"""Profiles of heads: their statistics on every evaluation unit, by which heads can be matched (science.md §15).

Letters: N units (sequences, pairs), L layers, H heads of one layer of a checkpoint, J of the same layer of another.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from headdyn.analysis.interventions.patch import chosen_layer

PROFILES = ("attention_profiles", "ablation_profiles", "effect_profiles")  # names of the tables that analyses write
Profiles = Mapping[str, np.ndarray]  # each head's values on every unit, by feature: [L, H, N], of one layer [H, N]


def profile_table(values: Mapping[str, np.ndarray]) -> pa.Table:
    """One row per feature, unit, layer and head, from each feature's values, [N, L, H]; NaN is absent."""
    tables = []
    for feature, value_NLH in values.items():
        unit, layer, head = np.indices(value_NLH.shape, dtype=np.int32).reshape(3, -1)
        columns = {"unit": unit, "layer": layer, "head": head, "value": value_NLH.astype(np.float32).ravel()}
        tables.append(pa.table({"feature": np.full(len(unit), feature), **columns}))
    return pa.concat_tables(tables)


def read_profiles(tables: Mapping[str, pa.Table]) -> Profiles:
    """The profiles of a model's heads, [L, H, N] by feature, from tables that `profile_table` made."""
    profiles = {}
    for name, table in tables.items():
        columns = {column: table[column].to_numpy() for column in table.column_names}
        places = tuple(columns[axis] for axis in ("layer", "head", "unit"))
        shape = tuple(int(place.max()) + 1 for place in places)
        for feature in dict.fromkeys(columns["feature"].tolist()):
            rows = columns["feature"] == feature
            value_LHN = np.full(shape, np.nan, dtype=np.float32)
            value_LHN[tuple(place[rows] for place in places)] = columns["value"][rows]
            profiles[f"{name} {feature}"] = value_LHN
    return profiles


def of_layer(profiles: Profiles, layer: int | None) -> Profiles:
    """The profiles of one layer's heads, [H, N] by feature; None is the middle layer."""
    return {name: value_LHN[chosen_layer(layer, len(value_LHN))] for name, value_LHN in profiles.items()}


def profile_correlations(earlier: Profiles, later: Profiles) -> np.ndarray:
    """Correlation of every earlier head's profile with every later head's, [H, J], from one layer's profiles of each.

    A profile is a head's values on every unit, feature after feature, each standardised over the heads of its layer.
    A feature counts if both sides have it on the same number of units, no value missing. The correlation is 0 where no
    feature counts, and for a head whose profile is constant.
    """
    shared = [name for name in earlier if name in later and earlier[name].shape[1] == later[name].shape[1]]
    shared = [name for name in shared if np.isfinite(earlier[name]).all() and np.isfinite(later[name]).all()]
    if not shared:
        return np.zeros([len(next(iter(profiles.values()))) for profiles in (earlier, later)])
    sides = []
    for profiles in (earlier, later):
        value_HX = np.concatenate([_standardised(profiles[name], axis=0) for name in shared], axis=1)
        sides.append(_standardised(value_HX, axis=1))
    return sides[0] @ sides[1].T / sides[0].shape[1]


def _standardised(value_HX: np.ndarray, axis: int) -> np.ndarray:
    """The values less their mean, over their standard deviation; 0 where they do not vary."""
    apart_HX = value_HX - value_HX.mean(axis, keepdims=True)
    spread_HX = value_HX.std(axis, keepdims=True)
    varies = spread_HX > 1e-6 * np.abs(value_HX).max(axis, keepdims=True)  # more than float32's rounding
    return np.where(varies, apart_HX / np.where(varies, spread_HX, 1), 0)
