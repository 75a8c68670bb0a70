"""What a checkpoint takes from the Hugging Face hub, through its own client. No torch here.

Of a repository only config, tokenizer and one set of weights are downloaded (safetensors before .bin), never code.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headdyn.core.records import write_json
from headdyn.core.store import file_hash
from headdyn.models.revisions import in_order, step_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

SOURCE = "source.json"  # beside a downloaded checkpoint's files: name, revision and commit
WITHOUT_NETWORK = "without a network, model=organism_planted runs the same on a suite trained here"

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|tokenizer\.model|chat_template\.jinja"
)
_ANSWER_SECONDS = 5.0  # a silent network is told from a slow one by then
_GIVE_UP_SECONDS = 6.0  # after which a hub that never answered is not asked again
_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0)
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses worth asking again
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # a full disk does not empty by waiting


class CheckpointError(ValueError):
    """A checkpoint that cannot be had. A sweep records it and goes on with the others."""


def is_tokenizer(file: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    return _TOKENIZER.fullmatch(file) is not None


def wanted_files(there: Collection[str]) -> list[str]:
    """Of a repository's files, those a checkpoint is read from. Raises ValueError where they hold no weights."""
    for name in WEIGHTS:
        stem, _, ending = name.partition(".")
        shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{ending}")
        weights = [name] if name in there else sorted(filter(shard.fullmatch, there))
        if weights and (name in there or f"{name}.index.json" in there):
            index = [] if name in there else [f"{name}.index.json"]
            return ["config.json", *sorted(filter(is_tokenizer, there)), *index, *weights]
    raise ValueError(
        f"holds no weights that are read ({' or '.join(WEIGHTS)}, whole or in shards); it has {sorted(there)[:10]}"
    )


def download(name: str, revision: str, folder: Path) -> None:
    """Put one revision's files and `source.json` into the folder, where an earlier try may have left some of them.

    A connection that breaks is gone on from, or tried again with growing pauses; checksums are the hub's.
    Raises CheckpointError, in one line, where they cannot be had; OSError where the disk refuses.
    """
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # a sweep's jobs share one terminal
    info = describe(name, revision)
    files = {file.rfilename: file for file in info.siblings or ()}
    if "config.json" not in files:
        raise CheckpointError(f"{name} {revision} has no config.json, so it is no checkpoint of a known family")
    try:
        wanted = wanted_files(files)
    except ValueError as error:
        raise CheckpointError(f"{name} {revision} {error}") from error
    log.info("downloading %s %s (%.0f MB)", name, revision, sum(files[file].size or 0 for file in wanted) / 1e6)
    for file in wanted:
        lfs = files[file].lfs
        _download_file(name, revision, info.sha, file, folder, None if lfs is None else lfs.sha256)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes on what it downloaded
    write_json(folder / SOURCE, {"name": name, "revision": revision, "commit": info.sha})


def endpoint() -> str | None:
    """HF_ENDPOINT as it is now; the client reads it only once."""
    return os.environ.get("HF_ENDPOINT") or None


def describe(name: str, revision: str) -> Any:
    """What the hub says of a revision: commit and files. Raises CheckpointError; within ten seconds if none answers."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    begun = time.monotonic()
    for pause in (*_BACKOFF_SECONDS, None):
        try:
            return _within(
                _ANSWER_SECONDS,
                lambda: api.model_info(name, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS),
            )
        except Exception as error:  # of whichever HTTP library the client uses
            status = _status(error)
            hopeless = status is None and time.monotonic() - begun + (pause or 0) > _GIVE_UP_SECONDS
            if pause is None or hopeless or _is_final(error):
                raise _explained(api, name, revision, error) from error
            log.warning("%s %s: %s; asking again in %.0f s", name, revision, _first_line(error), pause)
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def _download_file(name: str, revision: str, commit: str, file: str, folder: Path, sha256: str | None) -> None:
    """One file, checked. The client goes on with a file whose connection broke, and has it again after that."""
    from huggingface_hub import HfApi, hf_hub_download

    at = endpoint()
    for pause in (*_BACKOFF_SECONDS, None):
        try:
            path = Path(hf_hub_download(name, file, revision=commit, local_dir=folder, endpoint=at))
            if sha256 is None or file_hash(path) == sha256:
                return
            path.unlink()
            raise OSError(f"{file} does not match the hub's checksum")
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            if pause is None or _is_final(error):
                raise _explained(HfApi(endpoint=at), name, revision, error, file) from error
            log.warning("%s %s, %s: %s; again in %.0f s", name, revision, file, _first_line(error), pause)
            time.sleep(pause)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result, or TimeoutError: looking up a host's name may outlast any limit set on the request."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append((call(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _status(error: Exception) -> int | None:
    """The HTTP status of an error that is an answer, else None."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _is_final(error: Exception) -> bool:
    """Whether asking again is pointless."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status not in _PASSING
    return isinstance(error, OfflineModeIsEnabled | HFValidationError)


def _explained(api: HfApi, name: str, revision: str, error: Exception, file: str = "") -> CheckpointError:
    """The client's error in one line that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{name} {revision}" + (f", {file}" if file else "")
    if isinstance(error, GatedRepoError):
        return CheckpointError(f"{name} is gated; ask for access at {api.endpoint}/{name}, then run hf auth login")
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{name} has no revision {revision}" + _refs(api, name, revision))
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"the hub has no model {name}, or it is private, and no folder here is called that; "
            "check model.name, or run hf auth login"
        )
    if isinstance(error, HFValidationError):
        return CheckpointError(f"model.name={name!r} is no folder here, nor can it be a name on the hub")
    if isinstance(error, OfflineModeIsEnabled):
        return CheckpointError(f"HF_HUB_OFFLINE is set and {what} is in no cache; {WITHOUT_NETWORK}")
    return CheckpointError(f"{what} cannot be had from the hub ({_first_line(error)}); {WITHOUT_NETWORK}")


def _refs(api: HfApi, name: str, revision: str) -> str:
    """The revisions nearest to one that is not there, if the hub tells."""
    try:
        refs = _within(_ANSWER_SECONDS, lambda: api.list_repo_refs(name))
    except Exception as error:
        log.warning("%s: the hub does not list its revisions (%s)", name, _first_line(error))
        return ""
    return f"; the nearest it has are {nearest(revision, [ref.name for ref in (*refs.branches, *refs.tags)])}"


def nearest(revision: str, there: Collection[str], count: int = 3) -> str:
    """The revisions there whose steps, or else whose names, are nearest."""
    step = step_of(revision)
    steps = {other: step_of(other) for other in there}
    if step is not None and any(at is not None for at in steps.values()):
        by_step = sorted((abs(at - step), at, other) for other, at in steps.items() if at is not None)
        return ", ".join(in_order([other for *_, other in by_step[:count]]))
    return ", ".join(difflib.get_close_matches(revision, there, n=count, cutoff=0.0))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
