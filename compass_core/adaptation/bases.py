"""The frozen base model: checked before it costs anything, fingerprinted, loaded once per process.

Only safetensors weights and transformers' own code are accepted: a model folder is data from a
stranger. `check_base` reads headers, not weights, so a wrong folder is refused within
milliseconds; this module therefore imports torch only when a model is really loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compass_core.config import BaseConfig
from compass_core.errors import CompassError, ModelError, TransientError, bounded_list
from compass_core.storage import canonical_json, sha256_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_IDENTITY_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")
_IDENTITY_NAMES = ("vocab.txt", "merges.txt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_HUB_TIMEOUT_SECONDS = 10.0
_HEADER_LIMIT_BYTES = 100 << 20


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


# --------------------------------------------------------------------------- checks
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
        raise ModelError(_missing_folder(folder))
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


def _missing_folder(folder: Path) -> str:
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
        raise ModelError(_missing_folder(folder))
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
