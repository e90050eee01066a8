"""Adapters on a frozen base: attach, detach, save as a plain peft folder, load with proof.

A saved adapter is what any peft user expects (``adapter_model.safetensors``,
``adapter_config.json``, ``README.md``) plus ``ADAPTER.json`` with the SHA-256 of each file and the
identity of the base it belongs to. Nothing in it names a path of the machine or a time, so equal
trainings give equal files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from compass_core.adaptation.base_files import refuse_unknown_layers
from compass_core.adaptation.bases import Base
from compass_core.adapter_files import (
    CONFIG_NAME,
    LEDGER_NAME,
    WEIGHTS_NAME,
    adapter_file_hashes,
    adapter_sha256,
)
from compass_core.config import TrainingConfig
from compass_core.errors import ConfigError, ModelError, bounded_list
from compass_core.seeding import derive_seed
from compass_core.storage import (
    read_json,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
PROVEN_NAMES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
FORMAT_VERSION = 1
_SHAPING = frozenset(
    {"r", "lora_alpha", "target_modules", "use_dora", "use_rslora", "bias", "lora_bias"}
    | {"modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules"}
)
"""Settings of an adapter that decide which weights it has and what they mean."""
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


# --------------------------------------------------------------------------- attach, detach
def linear_modules(model: nn.Module) -> dict[str, list[str]]:
    """Return last name → full names of the linear layers of `model`, without its output head."""
    from transformers.pytorch_utils import Conv1D

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            found.setdefault(name.rpartition(".")[2], []).append(name)
    return found


def pick_targets(model: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    """Return the names of the layers to adapt, sorted.

    Args:
        model: The base model.
        wanted: Names of linear layers (``q_proj`` or a dotted end of a full name); empty: all
            linear layers but the output head.

    Raises:
        ModelError: E35 with the nearest names when a name fits no linear layer.
    """
    available = linear_modules(model)
    if not wanted:
        return sorted(available)
    full = [name for names in available.values() for name in names]
    refuse_unknown_layers(full, wanted)
    return sorted(set(wanted))


def lora_config(base: Base, config: TrainingConfig) -> LoraConfig:
    """Return peft's configuration for `config` on `base`."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=pick_targets(base.model, config.target_modules),
        use_dora=config.adapter == "dora",
        bias="none",
    )


def attach_adapter(base: Base, config: TrainingConfig, *, seed: int = 0) -> PeftModel:
    """Put a new adapter on `base`, its weights drawn from `seed`.

    The base's own weights are shared, not copied: one adapter at a time, then `detach_adapter`.

    Raises:
        ModelError: E35, see `pick_targets`.
    """
    settings = lora_config(base, config)
    with seeded(derive_seed(seed, "adapter"), base.device):
        return _inject(base, settings)


def _inject(base: Base, settings: LoraConfig) -> PeftModel:
    assert not hasattr(base.model, "peft_config"), "an adapter is already attached"
    settings.base_model_name_or_path = None
    with warnings.catch_warnings():
        # peft still asks transformers for a property that was renamed; nothing to do here.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        model = get_peft_model(base.model, settings)
    settings.base_model_name_or_path = base.name
    settings.revision = base.revision or None
    return model


def detach_adapter(model: PeftModel) -> None:
    """Take the adapter off again; the base is bit for bit what it was."""
    causal = model.unload()
    causal.requires_grad_(False)
    causal.eval()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside the block, and leave its state untouched."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def adapted(base: Base, folder: Path | None) -> Iterator[Any]:
    """Give the base with the adapter of `folder` in eval mode (None: the base as it is)."""
    if folder is None:
        yield base.model
        return
    model = load_adapter(base, folder)
    try:
        yield model
    finally:
        detach_adapter(model)


# --------------------------------------------------------------------------- save
def save_adapter(model: PeftModel, folder: Path, card: Mapping[str, Any], *, base: Base) -> str:
    """Write the attached adapter as a peft folder with card and proof; return its SHA-256.

    Args:
        model: A base with an adapter attached.
        folder: Folder to write to; made when missing.
        card: Plain JSON values about the adapter (language, data fingerprints, licence, …), kept
            in ``ADAPTER.json`` and shown in the model card.
        base: The base the adapter was trained on.
    """
    state = {name: t.detach().cpu().contiguous() for name, t in adapter_state(model).items()}
    write_bytes(folder / WEIGHTS_NAME, save(dict(sorted(state.items())), {"format": "pt"}))
    settings = _config_values(model, base)
    write_json(folder / CONFIG_NAME, settings)
    write_text(folder / CARD_NAME, _card_text(card, settings, base))
    write_json(
        folder / LEDGER_NAME,
        {
            "format_version": FORMAT_VERSION,
            "files": {name: sha256_file(folder / name) for name in PROVEN_NAMES},
            "base": {"id": base.name, "revision": base.revision, "fingerprint": base.fingerprint},
            "card": dict(card),
        },
    )
    return adapter_sha256(folder)


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's weights by the names peft stores them under."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def _config_values(model: PeftModel, base: Base) -> dict[str, Any]:
    values = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in model.peft_config["default"].to_dict().items()
    }
    values["inference_mode"] = True
    values["base_model_name_or_path"] = base.name
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _card_text(card: Mapping[str, Any], settings: Mapping[str, Any], base: Base) -> str:
    front = ["library_name: peft", "tags: [compass, lora]"]
    if _HUB_ID.match(base.name) and base.revision:
        front.append(f"base_model: {base.name}")
    kind = "DoRA" if settings["use_dora"] else "LoRA"
    facts = {
        "base": base.name,
        "base revision": base.revision or "local folder",
        "base fingerprint": base.fingerprint,
        "adapter": f"{kind}, rank {settings['r']}, alpha {settings['lora_alpha']:g}",
        "layers": ", ".join(settings["target_modules"]),
        **{str(key): value for key, value in card.items()},
    }
    lines = [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
    title = f"# COMPASS adapter {card.get('language', '')}".rstrip()
    table = "\n".join(["| | |", "|---|---|", *lines])
    return "\n".join(["---", *front, "---", "", title, "", table, ""])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("\n", " ").replace("|", "\\|")


# --------------------------------------------------------------------------- load
def verify_adapter(folder: Path) -> dict[str, Any]:
    """Re-hash the files of an adapter and return its ``ADAPTER.json``.

    Raises:
        ModelError: E26 the folder or its ledger is missing; E28 pickles or strange files; E29 a
            file is missing or changed; E34 a format of another release.
    """
    hashes = adapter_file_hashes(folder)
    if LEDGER_NAME not in hashes:
        raise ModelError(
            f"{folder} is no COMPASS adapter: {LEDGER_NAME} is missing. Give the folder that "
            "training wrote."
        )
    identity = _read_identity(folder)
    if identity["format_version"] != FORMAT_VERSION:
        raise ModelError(
            f"The adapter {folder.name} has format {identity['format_version']}, this COMPASS "
            f"reads {FORMAT_VERSION}. Use the matching release.",
            code="E34",
        )
    unproven = sorted(set(PROVEN_NAMES) - set(identity["files"]))
    if unproven:
        raise ModelError(
            f"{folder.name}/{LEDGER_NAME} gives no hash of {', '.join(unproven)}. Restore it or "
            "train again.",
            code="E29",
        )
    return identity


def _read_identity(folder: Path) -> dict[str, Any]:
    try:
        identity = read_json(folder / LEDGER_NAME)
        complete = {"files", "base", "format_version"} <= set(identity)
        if complete and {"id", "fingerprint"} <= set(identity["base"]):
            return dict(identity)
        reason = "fields are missing"
    except (ValueError, TypeError) as error:
        reason = str(error)
    raise ModelError(
        f"{folder.name}/{LEDGER_NAME} is damaged: {reason}. Restore it or train again.",
        code="E29",
    )


def load_adapter(base: Base, folder: Path) -> PeftModel:
    """Attach a saved adapter to `base` for inference, after verifying it.

    Raises:
        ModelError: see `verify_adapter`; also E30 non-finite weights, E31 shapes that do not fit,
            E33 trained on another base, E34 an unsupported kind of adapter.
    """
    _require_base(base, folder)
    settings = _read_lora_config(folder)
    return _attach_saved(base, folder, settings).eval()


def continue_adapter(base: Base, folder: Path, config: TrainingConfig) -> PeftModel:
    """Attach a saved adapter to `base` so that training can go on from its weights.

    Args:
        base: The base the adapter was trained on.
        folder: The saved adapter.
        config: The training to come; kind, rank, scale and layers must be the adapter's.

    Raises:
        ModelError: see `load_adapter`; E35 unknown target modules.
        ConfigError: E42 `config` describes another adapter.
    """
    _require_base(base, folder)
    _read_lora_config(folder)
    wanted = lora_config(base, config)
    _require_same_kind(read_json(folder / CONFIG_NAME), wanted.to_dict(), folder.name)
    return _attach_saved(base, folder, wanted)


def _require_base(base: Base, folder: Path) -> None:
    trained_on = verify_adapter(folder)["base"]
    if trained_on["fingerprint"] != base.fingerprint:
        raise ModelError(
            f"The adapter {folder.name} was trained on base {trained_on['id']} "
            f"({trained_on['fingerprint'][:12]}), this is {base.name} ({base.fingerprint[:12]}). "
            "Load the base it was trained on, or train it again on this one.",
            code="E33",
        )


def _require_same_kind(saved: Mapping[str, Any], wanted: Mapping[str, Any], name: str) -> None:
    """Refuse a training configuration that describes another adapter than the saved one."""
    differing = [
        f"{key} is {shown} in training.* and {found} in the adapter"
        for key in sorted({*saved, *wanted} & _SHAPING)
        if (shown := _plain(wanted.get(key))) != (found := _plain(saved.get(key)))
    ]
    if differing:
        raise ConfigError(
            f"An update keeps the adapter it starts from, but {name} was trained otherwise:\n"
            f"{bounded_list(differing)}\nSet training.adapter, lora_rank, lora_alpha and "
            "target_modules to what the adapter has, or train a new one.",
            code="E42",
        )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list | tuple) else value or None


def _attach_saved(base: Base, folder: Path, settings: LoraConfig) -> PeftModel:
    state = _read_weights(folder)
    with seeded(0, base.device):
        model = _inject(base, settings)
    try:
        expected = {name: tuple(t.shape) for name, t in adapter_state(model).items()}
        found = {name: tuple(t.shape) for name, t in state.items()}
        if expected != found:
            differ = sorted(n for n in expected | found if expected.get(n) != found.get(n))
            raise ModelError(
                f"The adapter {folder.name} does not fit its own config; differing tensors:\n"
                f"{bounded_list(differ)}\nTrain it again.",
                code="E31",
            )
        set_peft_model_state_dict(model, state)
    except BaseException:
        detach_adapter(model)
        raise
    return model


def _read_lora_config(folder: Path) -> LoraConfig:
    values = read_json(folder / CONFIG_NAME)
    kind = values.get("peft_type")
    # megatron settings and auto_mapping name Python modules to import: never from a file.
    foreign = [key for key in ("megatron_config", "auto_mapping") if values.get(key)]
    if kind != "LORA" or foreign:
        what = f"needs {', '.join(foreign)}" if foreign else f"is of type {kind!r}"
        raise ModelError(
            f"The adapter {folder.name} {what}; COMPASS loads LoRA and DoRA only.", code="E34"
        )
    settings: LoraConfig = LoraConfig.from_pretrained(str(folder))
    return settings


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise ModelError(
            f"{folder.name}/{WEIGHTS_NAME} is damaged: {error}. Restore it or train again.",
            code="E29",
        ) from error
    damaged = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if damaged:
        raise ModelError(
            f"The adapter {folder.name} has NaN or infinite weights in:\n{bounded_list(damaged)}\n"
            "Train it again with a lower learning rate.",
            code="E30",
        )
    return state
