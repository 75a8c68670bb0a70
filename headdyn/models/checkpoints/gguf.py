"""GGUF files, read through the packages gguf and transformers (extra `gguf`) and kept as Hugging Face folders.

Rounded weights become float32 numbers, as coarse as the rounding left them. No torch until a file is unpacked.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headdyn.core.json_files import write_json
from headdyn.core.store import Store, file_hash
from headdyn.models.checkpoints.hub import SOURCE, CheckpointError

SUFFIX = ".gguf"
SCHEMA = 1
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")  # headdyn's families whose files transformers reads


def require_readable(path: Path) -> str:
    """The quantisation of a GGUF file, such as "Q4_1 in 210, F32 in 61 tensors".

    Raises CheckpointError, in one line, if the package gguf is absent, if the file is no GGUF file or is cut off, if
    its family is unknown, or if the package cannot undo its kind of rounding.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"model.name={path} needs the package gguf; pip install 'headdyn[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise CheckpointError(
            f"model.name={path} is no GGUF file, is cut off, or is newer than the package gguf ({error}); get it again"
        ) from error
    field = reader.get_field("general.architecture")
    family = None if field is None else field.contents()
    if family not in ARCHITECTURES:
        raise CheckpointError(
            f"model.name={path} is of the family {family!r}; of GGUF files {', '.join(ARCHITECTURES)} are read"
        )
    kinds = Counter(tensor.tensor_type for tensor in reader.tensors)
    for kind in kinds:
        if not _can_be_undone(kind):
            known = ", ".join(other.name for other in gguf.GGMLQuantizationType if _can_be_undone(other))
            raise CheckpointError(f"model.name={path} holds weights rounded as {kind.name}; {known} are read")
    return ", ".join(f"{kind.name} in {count}" for kind, count in kinds.most_common()) + " tensors"


def _can_be_undone(kind: Any) -> bool:
    """Whether the package gguf can convert this kind of rounded weights to numbers, tried on a block of zeros."""
    import gguf
    import numpy as np

    try:
        gguf.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def unpacked(path: Path, store: Store) -> Path:
    """A Hugging Face folder with a GGUF file's settings, tokenizer and weights, made at most once for its content."""
    quantisation, digest = require_readable(path), file_hash(path)

    def build(folder: Path) -> None:
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(**_from_file(path), dtype="float32")
        weights = {name: weight.detach() for name, weight in model.named_parameters()}  # a tied weight once
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        _save_settings(path, folder)
        write_json(folder / SOURCE, {"name": path.name, "commit": None, "quantisation": quantisation})

    return store.get("gguf", {"schema": SCHEMA, "sha256": digest}, build).path


@contextmanager
def settings_of(path: Path, store: Store) -> Iterator[Path]:
    """A folder with the settings and the tokenizer of a GGUF file, for use in the block; weights are not read.

    If `path` is a folder already, it is that folder. Raises CheckpointError as `require_readable` does.
    """
    if path.is_dir():
        yield path
        return
    require_readable(path)
    if entry := store.find("gguf", {"schema": SCHEMA, "sha256": file_hash(path)}):
        yield entry.path
        return
    with TemporaryDirectory() as folder:
        _save_settings(path, Path(folder))
        yield Path(folder)


def _from_file(path: Path) -> dict[str, Any]:
    """The arguments with which transformers' `from_pretrained` reads the file."""
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}


def _save_settings(path: Path, folder: Path) -> None:
    """Write the file's settings and its tokenizer, if it has one, to the folder."""
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    AutoConfig.from_pretrained(**_from_file(path)).save_pretrained(folder)
    if gguf.GGUFReader(path).get_field("tokenizer.ggml.tokens") is not None:
        AutoTokenizer.from_pretrained(**_from_file(path)).save_pretrained(folder)
