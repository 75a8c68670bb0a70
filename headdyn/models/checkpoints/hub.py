"""Downloads checkpoints from the Hugging Face hub by its own client. Imports no torch.

Only config, tokenizer and one set of weights are downloaded (safetensors rather than .bin), never code.
"""

import difflib
import errno
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelInfo, errors, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from headdyn.core.json_files import write_json
from headdyn.core.store import file_hash
from headdyn.core.threads import within
from headdyn.models.revisions import in_order, step_of

T = TypeVar("T")
log = logging.getLogger(__name__)

SOURCE = "source.json"  # beside a downloaded checkpoint's files: name, revision and commit
WITHOUT_NETWORK = "without a network, model=organism_planted runs the same on a suite trained here"

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|tokenizer\.model|chat_template\.jinja"
)
_ANSWER_SECONDS = 5.0  # how long to wait for an answer
_GIVE_UP_SECONDS = 6.0  # how long to go on asking a hub that gives no answer at all
_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0)
_PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses that may pass, so that the request is repeated
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # errors that repeating does not mend


class CheckpointError(ValueError):
    """A checkpoint cannot be had, or not be used. A sweep records the error and goes on with the other runs."""


def is_tokenizer(file: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    return _TOKENIZER.fullmatch(file) is not None


def wanted_files(available: Collection[str]) -> list[str]:
    """The files of a repository that make up a checkpoint. Raises ValueError if there are no weights among them."""
    tokenizer = sorted(filter(is_tokenizer, available))
    for name in WEIGHTS:
        stem, _, ending = name.partition(".")
        shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{ending}")
        if name in available:
            return ["config.json", *tokenizer, name]
        shards = sorted(filter(shard.fullmatch, available))
        if shards and f"{name}.index.json" in available:
            return ["config.json", *tokenizer, f"{name}.index.json", *shards]
    raise ValueError(
        f"holds no weights that are read ({' or '.join(WEIGHTS)}, whole or in shards); it has {sorted(available)[:10]}"
    )


def download(name: str, revision: str, folder: Path) -> None:
    """Download one revision's files into the folder, and write `source.json`. An interrupted download is continued.

    A file that differs from the hub's checksum is downloaded again. Raises CheckpointError, in one line, if a file
    cannot be had, and OSError if the disk fails.
    """
    info = describe(name, revision)
    files = {file.rfilename: file for file in info.siblings or ()}
    if "config.json" not in files:
        raise CheckpointError(f"{name} {revision} has no config.json, so it is no checkpoint of a known family")
    try:
        wanted = wanted_files(files)
    except ValueError as error:
        raise CheckpointError(f"{name} {revision} {error}") from error
    log.info("downloading %s %s (%.0f MB)", name, revision, sum(files[file].size or 0 for file in wanted) / 1e6)

    def transfer() -> None:
        disabled_before = are_progress_bars_disabled()
        disable_progress_bars()  # because a sweep's jobs share one terminal
        try:
            snapshot_download(name, revision=info.sha, local_dir=folder, allow_patterns=wanted, endpoint=endpoint())
        finally:
            if not disabled_before:
                enable_progress_bars()
        for file in wanted:
            lfs = files[file].lfs
            if lfs is not None and file_hash(folder / file) != lfs.sha256:
                (folder / file).unlink()
                raise OSError(f"{file} does not match the hub's checksum")

    try:
        _retried(f"{name} {revision}", transfer)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        missing = next((file for file in wanted if not (folder / file).is_file()), None)
        raise _explained(name, revision, error, missing) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes on what it downloaded
    write_json(folder / SOURCE, {"name": name, "revision": revision, "commit": info.sha})


def endpoint() -> str | None:
    """The present value of HF_ENDPOINT, which the client itself reads only once."""
    return os.environ.get("HF_ENDPOINT") or None


def describe(name: str, revision: str) -> ModelInfo:
    """A revision's commit and files on the hub. Raises CheckpointError, within ten seconds if there is no answer."""

    def ask() -> ModelInfo:
        api = HfApi(endpoint=endpoint())
        return api.model_info(name, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS)

    try:
        return _retried(f"{name} {revision}", lambda: within(_ANSWER_SECONDS, ask), patience=_GIVE_UP_SECONDS)
    except Exception as error:  # of whichever HTTP library the client uses
        raise _explained(name, revision, error) from error


def _retried(what: str, call: Callable[[], T], *, patience: float = math.inf) -> T:
    """The call's result. After an error that may pass, tries again, with growing pauses.

    A hub that gives no answer at all is tried for at most `patience` seconds. `what` names the call in the log.
    """
    begun, pauses = time.monotonic(), iter(_BACKOFF_SECONDS)
    while True:
        try:
            return call()
        except Exception as error:
            pause = next(pauses, None)
            silent = _status(error) is None and time.monotonic() - begun + (pause or 0) > patience
            if pause is None or silent or _is_final(error):
                raise
            log.warning("%s: %s; again in %.0f s", what, _first_line(error), pause)
            time.sleep(pause)


def _status(error: Exception) -> int | None:
    """The HTTP status of the hub's answer, or None if it gave no answer."""
    answered = isinstance(error, errors.HfHubHTTPError) and error.response is not None
    return error.response.status_code if answered else None  # type: ignore[attr-defined]


def _is_final(error: Exception) -> bool:
    """Whether trying again is pointless."""
    if (status := _status(error)) is not None:
        return status not in _PASSING
    on_disk = isinstance(error, OSError) and error.errno in _DISK
    return on_disk or isinstance(error, errors.OfflineModeIsEnabled | errors.HFValidationError)


def _explained(name: str, revision: str, error: Exception, file: str | None = None) -> CheckpointError:
    """The error in one line that says what to do; `file` is the first file that could not be downloaded."""
    api, what = HfApi(endpoint=endpoint()), f"{name} {revision}" + (f", {file}" if file else "")
    match error:
        case errors.GatedRepoError():
            text = f"{name} is gated; ask for access at {api.endpoint}/{name}, then run hf auth login"
        case errors.RevisionNotFoundError():
            text = f"{name} has no revision {revision}{_nearest_on_hub(api, name, revision)}"
        case errors.RepositoryNotFoundError():
            text = (
                f"the hub has no model {name}, or it is private, and no folder here is called that; "
                "check model.name, or run hf auth login"
            )
        case errors.HFValidationError():
            text = f"model.name={name!r} is no folder here, nor can it be a name on the hub"
        case errors.OfflineModeIsEnabled():
            text = f"HF_HUB_OFFLINE is set and {what} is in no cache; {WITHOUT_NETWORK}"
        case _:
            text = f"{what} cannot be had from the hub ({_first_line(error)}); {WITHOUT_NETWORK}"
    return CheckpointError(text)


def _nearest_on_hub(api: HfApi, name: str, revision: str) -> str:
    """The revisions on the hub nearest to a missing one, as the end of a sentence; empty if the hub lists none."""
    try:
        refs = within(_ANSWER_SECONDS, lambda: api.list_repo_refs(name))
    except Exception as error:
        log.warning("%s: the hub does not list its revisions (%s)", name, _first_line(error))
        return ""
    return f"; the nearest it has are {nearest(revision, [ref.name for ref in (*refs.branches, *refs.tags)])}"


def nearest(revision: str, available: Collection[str]) -> str:
    """The three available revisions whose steps, or else whose names, are nearest."""
    step = step_of(revision)
    other_steps = {other: other_step for other in available if (other_step := step_of(other)) is not None}
    if step is not None and other_steps:
        by_distance = sorted((abs(other_step - step), other_step, other) for other, other_step in other_steps.items())
        return ", ".join(in_order([other for *_, other in by_distance[:3]]))
    return ", ".join(difflib.get_close_matches(revision, available, n=3, cutoff=0.0))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
