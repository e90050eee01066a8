"""Jobs that check: devices before the work, and a stored adapter against the trained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compass_core.adaptation.jobs import exclusive, set_threads
from compass_core.config import BaseConfig
from compass_core.errors import ModelError

_TOLERANCE = 1e-6
_N_INPUTS = 3
_INPUT_TOKENS = 12


def check_device_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Try every device of ``devices``; returns nothing.

    Raises:
        ModelError: E26, a device does not exist here.
    """
    from compass_core.adaptation.bases import pick_device

    for device in spec["devices"]:
        pick_device(device)
    return {}


@exclusive
def check_adapter_job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Load the trained and the stored adapter and compare their logits on fixed inputs.

    Args:
        spec: base (`BaseConfig` with a resolved path), trained_folder, stored_folder, threads.

    Returns:
        ``max_difference`` of the logits.

    Raises:
        ModelError: E29, the stored adapter gives other logits.
    """
    import torch

    from compass_core.adaptation.adapters import adapted
    from compass_core.adaptation.bases import load_base

    set_threads(spec.get("threads"))
    base = load_base(BaseConfig.model_validate(spec["base"]))
    generator = torch.Generator().manual_seed(0)
    size = (_N_INPUTS, _INPUT_TOKENS)
    tokens = torch.randint(0, base.model.config.vocab_size, size, generator=generator)
    logits = []
    for name in ("trained_folder", "stored_folder"):
        with adapted(base, Path(spec[name])) as model, torch.no_grad():
            logits.append(model(input_ids=tokens.to(base.device)).logits.float())
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"The stored adapter answers differently from the trained one (logits differ by "
            f"{difference:.3g}). It was not registered; run the same command again.",
            code="E29",
        )
    return {"max_difference": difference}
