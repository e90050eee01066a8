"""The multilingual encoder: load it safely and name it; `embedding_batches` makes vectors with it.

A local folder and a hub id go through the same code: a hub model is first brought into the hub
cache without any pickle file, then checked and loaded as a folder. Nothing a model brings along is
ever executed: safetensors weights only, no remote code, and only modules of sentence-transformers
that compute vectors.
"""

from __future__ import annotations

import functools
import json
import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compass_core.errors import ModelError
from compass_core.storage import sha256_tree

logger = logging.getLogger(__name__)

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy")
_NOT_DOWNLOADED = [
    *(f"*{suffix}" for suffix in _PICKLE_SUFFIXES),
    *("*.onnx", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.gguf", "onnx/*", "openvino/*", "*.py"),
]
NGRAM_CONFIG = "ngrams.json"
"""Marks the folder of an encoder that `ngram_encoder` fitted."""
_OWN_MODULE = "compass_core.ngram_encoder.module.HashedNgrams"
_SAFE_MODULES = frozenset(
    {
        "Transformer",
        "StaticEmbedding",
        "Pooling",
        "WeightedLayerPooling",
        "Dense",
        "LayerNorm",
        "Dropout",
        "Normalize",
    }
)
_MAX_SHOWN = 5

LEAST_COSINE = 0.999
"""How near a vector of half precision must be to that of float32."""
_HALVES = ("float16", "bfloat16")
"""Tried in this order: float16 keeps three more bits, bfloat16 never overflows."""
_PROBE = (
    "Rain is expected in the mountains tomorrow.",
    "Wapi ninaweza kununua dawa ya kikohozi?",
    "Сколько стоит билет до столицы и обратно?",
    "كيف أزرع الطماطم في بيت صغير؟",
    "今天下午三点开会。",
    "मुझे गणित का यह सवाल समझाइए।",
    "7",
    "one two three four five six seven eight nine ten " * 12,
)


class TextModel(Protocol):
    """What is used of a SentenceTransformer."""

    def preprocess(self, inputs: list[str], prompt: str | None = None) -> dict[str, Any]:
        """Return the features of `inputs`: token ids, and a mask where texts are padded."""
        ...

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return the features with ``sentence_embedding`` (N, d), after all of its modules."""
        ...


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        name: As the user wrote it.
        model: The sentence-transformers model behind it.
        dimension: d.
        device: Where it computes.
        precision: ``float32``, ``float16`` or ``bfloat16``.
        prompt: The model's own default prompt, put before texts that get no other prefix.
    """

    name: str
    model: TextModel
    dimension: int
    device: str = "cpu"
    precision: str = "float32"
    prompt: str = ""


def load_encoder(
    name_or_path: str,
    *,
    revision: str = "",
    device: str = "auto",
    max_length: int = 256,
    dtype: str = "float32",
) -> Encoder:
    """Load a sentence-transformers encoder from a folder or the hub.

    A folder with a plain transformers model works too (mean pooling).

    Args:
        name_or_path: folder, or hub id such as ``intfloat/multilingual-e5-small``.
        revision: commit, tag or branch of a hub id.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        max_length: tokens per text; longer texts are cut.
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto``: on a GPU the first half
            precision whose vectors of a few probe texts lie within a cosine of `LEAST_COSINE` of
            float32's; float32 everywhere else.

    Raises:
        ModelError: E26 folder missing or incomplete, E27 needs remote code, E28 pickle weights
            only, E24 the hub does not give it.
    """
    folder = _resolve_folder(name_or_path, revision)
    _check_folder(folder, name_or_path)
    model = _load_model(folder, name_or_path, device, max_length)
    precision = dtype
    if dtype == "auto":
        wanted = _HALVES if model.device.type == "cuda" and model.transformers_model else ()
        precision, model = _settle_precision(
            model, wanted, lambda: _load_model(folder, name_or_path, device, max_length)
        )
    _cast(model, precision)
    return Encoder(
        name_or_path,
        model,
        int(model.get_embedding_dimension() or 0),
        str(model.device),
        precision,
        str(model.prompts.get(model.default_prompt_name) or ""),
    )


def _load_model(folder: Path, name: str, device: str, max_length: int) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        if (folder / NGRAM_CONFIG).is_file():
            from compass_core.ngram_encoder.module import load_ngram_model

            return load_ngram_model(folder, "cpu" if device == "auto" else device).eval()
        model = SentenceTransformer(
            str(folder),
            device=None if device == "auto" else device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        raise ModelError(
            f"The encoder {name} cannot be loaded: {type(error).__name__}: "
            f"{_first_line(error)}. It must be a sentence-transformers (or transformers) folder "
            "with safetensors weights and a tokenizer, and the device must exist "
            f"(embedding.device={device})."
        ) from error
    longest = model.max_seq_length
    if longest is None or longest > max_length:
        _limit_length(model, max_length)
    return model.eval()


def _cast(model: Any, precision: str) -> None:
    import torch

    model.to(getattr(torch, precision))


def _settle_precision(
    model: Any, wanted: tuple[str, ...], reload: Callable[[], Any]
) -> tuple[str, Any]:
    """Return the first of `wanted` that is near enough to float32, else float32; and a model.

    Args:
        model: with the weights as they were loaded; it is used up.
        wanted: half precisions in the order of preference.
        reload: gives the model anew, because a cast cannot be undone.
    """
    if not wanted:
        return "float32", model
    _cast(model, "float32")
    exact = _probe_vectors(model)
    for precision in wanted:
        _cast(model, precision)
        # Not finite compares as false, so a half precision that overflows is refused too.
        cosine = float((_probe_vectors(model) * exact).sum(axis=1).min())
        if cosine >= LEAST_COSINE:
            return precision, model
        logger.warning("Encoder in %s: cosine to float32 only %.4f", precision, cosine)
        model = reload()
    return "float32", model


def _probe_vectors(model: Any) -> Any:
    vectors = np.asarray(model.encode(list(_PROBE), show_progress_bar=False), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def encoder_fingerprint(name_or_path: str, revision: str = "") -> str:
    """Return what identifies the encoder's weights.

    The SHA-256 over a local folder's files, read once per process as long as their sizes and times
    stay; for a hub id ``id@commit`` where the commit is known (given, or in the hub cache), else
    ``id@revision``.

    Raises:
        ModelError: a local folder does not exist.
    """
    if _is_local(name_or_path):
        folder = Path(name_or_path).expanduser()
        if not folder.is_dir():
            raise _missing_folder(name_or_path)
        return _cached_sha256_tree(str(folder.resolve()), _file_stamps(folder))
    return f"{name_or_path}@{_cached_commit(name_or_path, revision) or revision or 'main'}"


def _file_stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of every file under `folder`."""
    found = [(str(p.relative_to(folder)), p.stat()) for p in sorted(folder.rglob("*"))]
    return tuple((name, s.st_size, s.st_mtime_ns) for name, s in found if stat.S_ISREG(s.st_mode))


@functools.lru_cache(maxsize=16)
def _cached_sha256_tree(folder: str, _stamps: tuple[tuple[str, int, int], ...]) -> str:
    return sha256_tree(Path(folder))


def _is_local(name_or_path: str) -> bool:
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    return looks_local or Path(name_or_path).expanduser().exists()


def _missing_folder(name_or_path: str) -> ModelError:
    return ModelError(
        f"The encoder folder {name_or_path} does not exist. Give `embedding.encoder` a "
        "sentence-transformers folder, a hub id such as intfloat/multilingual-e5-small, or "
        "`starter`; `compass fit-encoder` makes a folder from your own parallel rows."
    )


def _resolve_folder(name_or_path: str, revision: str) -> Path:
    if _is_local(name_or_path):
        folder = Path(name_or_path).expanduser()
        if not folder.is_dir():
            raise _missing_folder(name_or_path)
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name_or_path, revision=revision or None, ignore_patterns=_NOT_DOWNLOADED
            )
        )
    except Exception as error:
        raise ModelError(
            f"The encoder {name_or_path}{f' (revision {revision})' if revision else ''} is neither "
            f"a folder nor can it be fetched from the hub ({type(error).__name__}). Either the "
            "name or the revision is misspelt; or the model is gated or private and no token of "
            "an account with access is set (HF_TOKEN); or the hub cannot be reached (no network, "
            "or HF_HUB_OFFLINE=1) and the model is not in the local cache. Download it once with "
            "a network, or give a local folder.",
            code="E24",
        ) from error


def _check_folder(folder: Path, name: str) -> None:
    """Refuse what would run foreign code or is not there, before any of it is loaded.

    Raises:
        ModelError: E26, E27 or E28.
    """
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not an encoder: the folder has neither modules.json "
            "(sentence-transformers) nor config.json (transformers)."
        )
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("config.json", "tokenizer_config.json", "modules.json"):
            _check_no_code(path, name)
    pickled = [p for p in sorted(folder.rglob("*")) if p.suffix in _PICKLE_SUFFIXES]
    unsafe = [p for p in pickled if not list(p.parent.glob("*.safetensors"))]
    # `training_args.bin` and the like lie beside safetensors and are never read.
    if unsafe or not list(folder.rglob("*.safetensors")):
        found = ", ".join(str(p.relative_to(folder)) for p in unsafe[:_MAX_SHOWN]) or "none at all"
        raise ModelError(
            f"{name} has no safetensors weights for every part (found: {found}). Pickle weights "
            "can run code and are not loaded. Save it again with "
            "`SentenceTransformer(…).save(…)`, which writes model.safetensors, on a machine "
            "where you trust the file, or choose another revision.",
            code="E28",
        )


def _check_no_code(path: Path, name: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {path.name} is not readable JSON ({error}).") from error
    if path.name == "modules.json":
        types = [str(m.get("type", "")) for m in content] if isinstance(content, list) else ["?"]
        foreign = [
            t
            for t in types
            if t != _OWN_MODULE
            and (
                not t.startswith("sentence_transformers.") or t.split(".")[-1] not in _SAFE_MODULES
            )
        ]
    else:
        foreign = ["auto_map"] if isinstance(content, dict) and content.get("auto_map") else []
    if foreign:
        raise ModelError(
            f"{name} needs code of its own ({path.name}: {', '.join(foreign[:_MAX_SHOWN])}), which "
            "is not allowed (trust_remote_code=False). Use a model of a standard architecture; "
            f"supported modules: {', '.join(sorted(_SAFE_MODULES))}.",
            code="E27",
        )


def _limit_length(model: Any, max_length: int) -> None:
    """Cut texts at `max_length` tokens, in whichever way the first module knows."""
    try:
        model.max_seq_length = max_length
    except AttributeError:
        # A static embedding has no length of its own; its tokenizer can cut.
        model[0].tokenizer.enable_truncation(max_length)


def _cached_commit(repo: str, revision: str) -> str:
    """Return the commit that the hub cache holds for `revision`, or an empty text."""
    if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    reference = folder / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
