"""The files of a base model, checked before they cost anything.

Only safetensors weights and transformers' own code are accepted: a model folder is data from a
stranger. Headers are read, not weights, so a wrong folder is refused within milliseconds.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compass_core.errors import ModelError, bounded_list

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_HEADER_LIMIT_BYTES = 100 << 20


def is_local(path_or_id: str) -> bool:
    """Whether `path_or_id` names a folder rather than a hub id.

    An existing folder always wins. Of what does not exist, everything that cannot be a hub id is
    local, and so is a name inside a folder that does exist (a typing mistake in the last part).
    """
    path = Path(path_or_id).expanduser()
    if path.exists() or not _HUB_ID.match(path_or_id):
        return True
    return "/" in path_or_id and path.parent.is_dir()


def check_base(path_or_id: str) -> None:
    """Refuse a base model that cannot be used, before any compute.

    A hub id is only checked for its form; the same checks run on its files once they are here.

    Raises:
        ModelError: E26 folder, config or weights missing; E27 needs code of its own; E28 pickle
            weights only; E29 a damaged weight file; E32 no tokenizer, or tokenizer, config and
            weights disagree about the vocabulary.
    """
    if not is_local(path_or_id):
        return
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir():
        raise ModelError(missing_folder(folder))
    config = _read_config(folder / "config.json")
    tokenizer_config = folder / "tokenizer_config.json"
    settings = [config] + ([_read_config(tokenizer_config)] if tokenizer_config.is_file() else [])
    if any("auto_map" in values for values in settings):
        raise ModelError(
            f"The model {folder} needs its own Python code (`auto_map`), which COMPASS never runs. "
            "Use a model whose architecture transformers has built in.",
            code="E27",
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"The model {folder} has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)}). "
            "Save it into the same folder with `tokenizer.save_pretrained(folder)`.",
            code="E32",
        )
    _check_vocabulary(folder, config, _tensor_shapes(folder))


def check_targets(path_or_id: str, wanted: Sequence[str]) -> None:
    """Refuse layers to adapt that no weight of a local base is named after.

    The weights' names are all that is read; whether a layer is linear shows when it is adapted.

    Raises:
        ModelError: E35 with the nearest names.
    """
    if not wanted or not is_local(path_or_id):
        return
    layers = [
        name.removesuffix(".weight")
        for name, shape in _tensor_shapes(Path(path_or_id).expanduser()).items()
        if name.endswith(".weight") and len(shape) == 2
    ]
    refuse_unknown_layers(layers, wanted)


def refuse_unknown_layers(layers: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse names that are neither one of `layers` nor a dotted end of one.

    Raises:
        ModelError: E35 with the nearest names.
    """
    known = sorted({layer.rpartition(".")[2] for layer in layers})
    problems = []
    for name in wanted:
        if any(layer == name or layer.endswith(f".{name}") for layer in layers):
            continue
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        problems.append(f"{name!r}: nearest {', '.join(near or known[:5])}")
    if problems:
        raise ModelError(
            "training.target_modules names layers the base model does not have:\n"
            f"{bounded_list(problems)}\nUse these names, or leave the list empty for all linear "
            "layers.",
            code="E35",
        )


def missing_folder(folder: Path) -> str:
    """Return the message for a folder that does not exist, with the nearest names."""
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.4)
    found = "is a file" if folder.exists() else "does not exist"
    advice = f" Near it: {', '.join(near)}." if near else ""
    return (
        f"The base model folder {folder} {found}.{advice} "
        "Give a folder with config, tokenizer and safetensors weights, or a hub id."
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(
            f"The model folder {path.parent} has no {path.name}. "
            "Save the model with `model.save_pretrained(folder)`.",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Save the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object. Save the model again.")
    return values


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        ModelError: E28 when there are only pickle weights, E26 when there are none or a shard
            that the index names is missing.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise ModelError(
                f"The model {folder} has only pickle weights ({', '.join(pickles[:3])}), which can "
                "run code when read. Save it as safetensors: `model.save_pretrained(folder)`.",
                code="E28",
            )
        raise ModelError(f"The model folder {folder} has no weights (*.safetensors).")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = {str(name) for name in _read_config(index).get("weight_map", {}).values()}
        missing = sorted(named - {path.name for path in files})
        if missing:
            raise ModelError(
                f"The model {folder} lacks weight files its index names:\n{bounded_list(missing)}\n"
                "Copy or download the folder again."
            )
        files = [path for path in files if path.name in named]
    return files


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape of one safetensors file, from its header alone.

    Raises:
        ModelError: E29 when the file is cut, too long or not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_HEADER_LIMIT_BYTES, size):
                raise ValueError("no safetensors header")
            header = json.loads(stream.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes where the header announces {8 + length + end}")
        return {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} is damaged: {error}. Copy or download it again.", code="E29"
        ) from error


def _tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes.update(tensor_shapes(path))
    return shapes


def _check_vocabulary(
    folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    declared = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    rows = next((s[0] for n, s in shapes.items() if n.endswith(_EMBEDDING_NAMES)), None)
    if rows is not None and declared is not None and rows != declared:
        raise ModelError(
            f"The model {folder} disagrees with itself: config.json says vocab_size={declared}, "
            f"the embedding has {rows} rows. Save model and config together again.",
            code="E32",
        )
    needed = _tokenizer_size(folder / "tokenizer.json")
    available = rows or declared
    if needed is not None and available is not None and needed > available:
        raise ModelError(
            f"The tokenizer of {folder} knows {needed} tokens, the model's embedding only "
            f"{available}. Use the tokenizer the model was trained with.",
            code="E32",
        )


def _tokenizer_size(path: Path) -> int | None:
    """Return 1 + the highest token id of a fast tokenizer's file, None where it does not say."""
    if not path.is_file():
        return None
    values = _read_config(path)
    vocabulary = values.get("model", {}).get("vocab", {})
    ids = [int(entry["id"]) for entry in values.get("added_tokens", [])]
    if isinstance(vocabulary, dict):
        ids.extend(int(number) for number in vocabulary.values())
    else:
        ids.append(len(vocabulary) - 1)
    return max(ids, default=-1) + 1
