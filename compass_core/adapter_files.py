"""The files of a finished adapter, and whether they are still what was trained.

An adapter is a plain peft folder of at most four files, safetensors only. Its identity is the
SHA-256 over the names and contents of all of them, so a registry, a download and a training output
are the same adapter exactly when their folders hash the same. Reads headers only, never torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compass_core.errors import ModelError, bounded_list
from compass_core.storage import canonical_json, sha256_file

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
LEDGER_NAME = "ADAPTER.json"
REQUIRED_FILES = (WEIGHTS_NAME, CONFIG_NAME)
ALLOWED_FILES = frozenset({WEIGHTS_NAME, CONFIG_NAME, LEDGER_NAME, "README.md"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_MAX_JSON_BYTES = 10_000_000


def adapter_file_hashes(folder: Path) -> dict[str, str]:
    """Return the hex SHA-256 of every file of the adapter in `folder`, by name.

    Raises:
        ModelError: a file is missing, is not one of `ALLOWED_FILES`, is a link or a pickle (E28),
            cannot be read as safetensors, or differs from what ``ADAPTER.json`` says (E29).
    """
    paths = _allowed_paths(folder)
    _check_header(folder / WEIGHTS_NAME)
    hashes = {path.name: sha256_file(path) for path in paths}
    _check_ledger(folder, hashes)
    return hashes


def adapter_sha256(folder: Path) -> str:
    """Return the identity of the adapter in `folder`: one hex SHA-256 over names and contents.

    Raises:
        ModelError: the folder does not hold a whole, undamaged adapter.
    """
    return combined_sha256(adapter_file_hashes(folder))


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """Return one hex SHA-256 over file names and their hashes (as `storage.sha256_tree` does)."""
    return hashlib.sha256(canonical_json(dict(hashes)).encode()).hexdigest()


def _allowed_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ModelError(f"The adapter folder {folder} does not exist. Train the adapter first.")
    paths = sorted(folder.iterdir())
    pickles = [path.name for path in paths if path.suffix.lower() in _PICKLES]
    if pickles:
        raise ModelError(
            f"{folder} holds pickle files ({', '.join(pickles[:5])}). Only safetensors are "
            "accepted: save the adapter with save_pretrained(..., safe_serialization=True).",
            code="E28",
        )
    strangers = [
        f"{path.name} is {'a link' if path.is_symlink() else 'not part of an adapter'}"
        for path in paths
        if path.is_symlink() or not path.is_file() or path.name not in ALLOWED_FILES
    ]
    if strangers:
        raise ModelError(
            f"{folder} holds more than an adapter; allowed are {', '.join(sorted(ALLOWED_FILES))}. "
            f"Move these away:\n{bounded_list(strangers)}",
            code="E28",
        )
    names = {path.name for path in paths}
    missing = [name for name in REQUIRED_FILES if name not in names]
    if missing:
        raise ModelError(
            f"The adapter folder {folder} lacks {' and '.join(missing)} (found: "
            f"{', '.join(sorted(names)) or 'nothing'}). Train the adapter again."
        )
    return paths


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            empty = not list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged: {error}. Restore the file or train the adapter again.", code="E29"
        ) from error
    if empty:
        raise ModelError(f"{path} holds no tensors. Train the adapter again.", code="E29")


def _check_ledger(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare the files with ``ADAPTER.json`` (``files``: name to hash, or to {sha256: hash})."""
    if LEDGER_NAME not in hashes:
        return
    problems = []
    for name, expected in sorted(_ledger_files(folder / LEDGER_NAME).items()):
        if name == LEDGER_NAME:
            continue
        if name not in hashes:
            problems.append(f"{name} is missing")
        elif hashes[name] != expected:
            problems.append(f"{name}: sha256 is {hashes[name][:12]}…, expected {expected[:12]}…")
    if problems:
        raise ModelError(
            f"The adapter in {folder} is not the one {LEDGER_NAME} describes. Restore the files "
            f"or train the adapter again:\n{bounded_list(problems)}",
            code="E29",
        )


def _ledger_files(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("larger than any ledger")
        ledger: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): str(entry["sha256"] if isinstance(entry, Mapping) else entry)
            for name, entry in ledger.get("files", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not readable: {error}. Restore it.", code="E29") from error
