"""Whether a run's folder is complete already. Imports no torch, so that a finished sweep is reported at once."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headdyn.config import RunConfig
from headdyn.core.run_folder import read_manifest, write_manifest
from headdyn.core.store import recipe_key
from headdyn.data.corpus import Source, corpus_recipe

log = logging.getLogger(__name__)

CORPUS_SCHEMA = 1  # increased when the meaning of a corpus changes, so that older ones are built again
FOR_REPORTS = ("study", "outcomes")  # settings that only reports read; those of the last command are used


def done_with(config: RunConfig, folder: Path) -> bool:
    """Whether the run is done. If it is, writes the settings that only reports read into its record."""
    manifest = manifest_of_done(config, folder)
    if manifest is None:
        return False
    settings = {**manifest["config"], **{key: config.resolved[key] for key in FOR_REPORTS}}
    if settings != manifest["config"]:
        write_manifest(folder, {**manifest, "config": settings})
    return True


def manifest_of_done(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The manifest of a run that is complete in `folder`, with its text unchanged and `force` not set, or None.

    Logs why a run is not done. `read_manifest` also compares the run's results with their checksums.
    """
    manifest = read_manifest(folder)
    if manifest["status"] == "damaged":
        log.warning("%s: its record is damaged; running it again. %s", config.name, manifest["error"])
    if manifest["status"] != "complete" or config.force:
        return None
    if is_outdated(config, manifest):
        log.warning("%s: its text has changed since it was run; running it again", config.name)
        return None
    log.info("%s: already complete (force=true runs it again)", config.name)
    return manifest


def is_outdated(config: RunConfig, manifest: Mapping[str, Any]) -> bool:
    """Whether the user's file of text or of prompts has changed since the run."""
    if config.material == "prompts":
        fingerprint = getattr(config.data, "fingerprint", lambda: None)()
        return bool(fingerprint != manifest.get("prompts", {}).get("sha256"))
    recorded_key = manifest["stages"]["corpus"]["key"] if config.trains else manifest["corpus"]["source"]
    return bool(recorded_key != recipe_key("corpus", recipe_of(config.data)))


def recipe_of(source: Source) -> dict[str, Any]:
    """The recipe of a corpus, from which the store makes its key."""
    return {"schema": CORPUS_SCHEMA, **corpus_recipe(source)}
