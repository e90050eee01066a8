"""The frozen base model: checked, fingerprinted, loaded once per process.

torch and transformers are imported only when a model is really loaded, so that a flow may check
and fingerprint a base without paying for them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compass_core.adaptation.base_files import check_base, is_local, missing_folder
from compass_core.config import BaseConfig
from compass_core.errors import CompassError, ModelError, TransientError, bounded_list
from compass_core.storage import canonical_json, sha256_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "Base",
    "base_fingerprint",
    "base_slug",
    "check_base",
    "is_local",
    "load_base",
    "pick_device",
    "release_base",
]

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_IDENTITY_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")
_IDENTITY_NAMES = ("vocab.txt", "merges.txt")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        model: The causal LM, in eval mode, no parameter trainable.
        tokenizer: Its tokenizer; a pad token is always set.
        device: Where the weights are.
        fingerprint: Identity of weights, config and tokenizer (see `base_fingerprint`).
        name: Hub id, or the folder's name without its path.
        revision: Commit of a hub model; empty for a local folder.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    fingerprint: str
    name: str
    revision: str = ""

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template (else the plain fallback is used)."""
        return bool(self.tokenizer.chat_template)

    @property
    def max_positions(self) -> int | None:
        """Tokens the model can see at once, None where the config does not say."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None


# --------------------------------------------------------------------------- identity
def base_slug(path_or_id: str, name: str = "") -> str:
    """Return the base's part of a registered model's name: lower case, words joined by ``-``.

    A local folder gets 6 hex of its fingerprint, since folder names repeat. `name` replaces the
    folder's name where that says nothing (``base``).

    Examples:
        >>> base_slug("Qwen/Qwen2.5-0.5B")
        'qwen-qwen2-5-0-5b'
    """
    local = is_local(path_or_id)
    words = name or (Path(path_or_id).expanduser().resolve().name if local else path_or_id)
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{slug}-{base_fingerprint(path_or_id)[:6]}" if local else slug


def base_fingerprint(path_or_id: str, revision: str = "") -> str:
    """Return the identity of a base: a SHA-256 over its files, or ``id@commit`` for a hub model.

    Config, tokenizer and weights count; other files (readme, licence, pickles) do not.

    Raises:
        ModelError: the folder does not exist, or the hub does not know the id (E24).
        TransientError: the hub cannot be reached (E24).
    """
    if not is_local(path_or_id):
        return f"{path_or_id}@{_hub_commit(path_or_id, revision)}"
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir():
        raise ModelError(missing_folder(folder))
    files = {
        path.name: _cached_sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.suffix in _IDENTITY_SUFFIXES or path.name in _IDENTITY_NAMES)
    }
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _cached_sha256(path: str, _size: int, _modified_ns: int) -> str:
    return sha256_file(Path(path))


def _hub_commit(model_id: str, revision: str) -> str:
    if _COMMIT.match(revision):
        return revision
    from huggingface_hub import hf_hub_download

    with _hub_errors(model_id, revision):
        path = hf_hub_download(
            model_id,
            "config.json",
            revision=revision or None,
            etag_timeout=_HUB_TIMEOUT_SECONDS,
        )
    return Path(path).parent.name


@contextlib.contextmanager
def _hub_errors(model_id: str, revision: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one message with the causes to look at."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        yield
    except CompassError:
        raise
    except Exception as error:
        wanted = f"{model_id}@{revision}" if revision else model_id
        message = (
            f"The hub model {wanted} is not reachable, and there is no local folder or cached copy "
            f"of that name ({type(error).__name__}). Three causes: no network or HF_HUB_OFFLINE=1; "
            "the id or revision does not exist; the model is gated and no token with access is "
            "set. Download it elsewhere and give the folder, or fix the cause."
        )
        known = isinstance(error, GatedRepoError | RepositoryNotFoundError | NoRevision)
        raise (ModelError if known else TransientError)(message, code="E24") from error


def _resolve(path_or_id: str, revision: str) -> tuple[Path, str, str, str]:
    """Return folder, name, revision and fingerprint of a base, downloading a hub model."""
    if is_local(path_or_id):
        check_base(path_or_id)
        folder = Path(path_or_id).expanduser().resolve()
        return folder, folder.name, "", base_fingerprint(str(folder))
    from huggingface_hub import snapshot_download

    with _hub_errors(path_or_id, revision):
        folder = Path(
            snapshot_download(
                path_or_id,
                revision=revision or None,
                allow_patterns=_HUB_FILES,
                etag_timeout=_HUB_TIMEOUT_SECONDS,
            )
        )
    check_base(str(folder))
    return folder, path_or_id, folder.name, f"{path_or_id}@{folder.name}"


# --------------------------------------------------------------------------- loading
_loaded: dict[str, Base] = {}
"""The base of this process: at most one, so that a trainer's memory holds one model."""


def load_base(config: BaseConfig, path: str | Path | None = None) -> Base:
    """Load the base model, or return the one this process already holds.

    Weights are float32 on a CPU whatever they are stored in, and bfloat16 where the hardware has
    it, unless `config.dtype` says otherwise.

    Args:
        config: Model, revision, device and dtype.
        path: Folder to load instead of ``config.model`` (the resolved starter).

    Raises:
        ModelError: see `check_base`; also E30 non-finite weights, E31 weights and config disagree.
        TransientError: the hub cannot be reached (E24).
    """
    folder, name, revision, fingerprint = _resolve(str(path or config.model), config.revision)
    device, dtype = pick_device(config.device), config.dtype
    key = canonical_json([fingerprint, str(device), dtype])
    if key not in _loaded or hasattr(_loaded[key].model, "peft_config"):
        _loaded.clear()
        model = _load_model(folder, device, _pick_dtype(dtype, device))
        model.name_or_path = model.config._name_or_path = name
        tokenizer = _load_tokenizer(folder)
        _loaded[key] = Base(model, tokenizer, device, fingerprint, name, revision)
    return _loaded[key]


def release_base() -> None:
    """Forget the base of this process, so that its memory can be used again."""
    _loaded.clear()


def pick_device(device: str) -> torch.device:
    """Return the device `device` names; ``auto`` takes a GPU where there is one.

    Raises:
        ModelError: E26 when the device does not exist here.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device {device!r} cannot be used here: {str(error).splitlines()[0]}. "
            "Use `auto` or `cpu`."
        ) from error
    return chosen


def _pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            dtype
        ]
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ModelError(
            f"The weights of {folder.name} do not fit its config, or the architecture is not a "
            f"causal LM transformers knows: {str(error).strip().splitlines()[-1][:300]}",
            code="E31",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The model {folder.name} lacks weights its config asks for (they would be random):\n"
            f"{bounded_list(missing)}\nSave the model again, complete.",
            code="E31",
        )
    damaged = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if damaged:
        raise ModelError(
            f"The model {folder.name} has NaN or infinite weights in:\n{bounded_list(damaged)}\n"
            "Use another checkpoint.",
            code="E30",
        )
    model.requires_grad_(False)
    return model.to(device).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading bar: progress belongs to the caller."""
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ModelError(
            f"The tokenizer of {folder.name} cannot be read: "
            f"{str(error).strip().splitlines()[0][:300]}. Save it again.",
            code="E32",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {folder.name} has no end-of-text token, so answers could never "
            "end. Set `eos_token` in its tokenizer_config.json.",
            code="E32",
        )
    if tokenizer.pad_token_id is None:
        # Padding stands to the right of every text and is never looked at, so any id will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
