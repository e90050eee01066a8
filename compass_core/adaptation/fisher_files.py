"""Fisher information as an artefact, proven to belong to one base and one adapter.

<folder>/fisher.safetensors   F by the names of the adapter's own weights
<folder>/fisher.json          what it was computed from, and the SHA-256 of the other file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from compass_core.errors import ModelError, bounded_list
from compass_core.storage import read_json, sha256_file, write_bytes, write_json

FisherScale = Literal["mean", "max", "raw"]

TENSORS_NAME, FACTS_NAME = "fisher.safetensors", "fisher.json"
FORMAT_VERSION = 1
POLICY = (
    "F = mean over examples of the squared gradient of the example's mean log p over its response "
    "tokens; F of earlier stages is added with weight decay, each stage counting as one"
)


@dataclass(frozen=True)
class FisherInformation:
    """How much each weight of an adapter matters for what it was trained on.

    Attributes:
        values: Name in the adapter's state → F ≥ 0 of the weight's shape, float32.
        base_fingerprint: Identity of the base.
        adapter_sha256: Identity of the adapter whose weights the newest stage was computed at.
        n_examples: Examples the newest stage is the mean over.
        tokens: Real tokens read for the newest stage.
        n_stages: Stages in the sum.
        decay: Weight that earlier stages got when the newest was added.
    """

    values: dict[str, torch.Tensor]
    base_fingerprint: str
    adapter_sha256: str
    n_examples: int
    tokens: int
    n_stages: int = 1
    decay: float = 1.0

    @property
    def mean(self) -> float:
        """Mean of F over all weights."""
        total = sum(float(value.sum(dtype=torch.float64)) for value in self.values.values())
        return total / sum(value.numel() for value in self.values.values())

    @property
    def max(self) -> float:
        """Largest F of all weights."""
        return max(float(value.max()) for value in self.values.values())

    def facts(self) -> dict[str, Any]:
        """Return everything but the values, with mean, max and policy, as JSON values."""
        shown = {name: value for name, value in vars(self).items() if name != "values"}
        return {**shown, "mean": self.mean, "max": self.max, "policy": POLICY}


def scaled_fisher(fisher: FisherInformation, scale: FisherScale) -> dict[str, torch.Tensor]:
    """Return F divided by its mean or its maximum over all weights, or as it is (`raw`).

    With `mean` the average weight has F = 1, with `max` none has more than 1; so λ of equation (6)
    means the same for every base, language and length of text.
    """
    by = {"mean": fisher.mean, "max": fisher.max, "raw": 1.0}[scale]
    return {name: value / by if by > 0 else value for name, value in fisher.values.items()}


def add_fisher(
    newest: FisherInformation, earlier: FisherInformation, decay: float
) -> FisherInformation:
    """Return `newest` + `decay` · `earlier`: the online sum over updates.

    Both are means over their examples, so each stage counts as one however many examples it had.

    Raises:
        ModelError: E33 the two belong to different bases, E31 to adapters of other shapes.
    """
    require_fit(earlier, newest.base_fingerprint, newest.values)
    values = {name: value + decay * earlier.values[name] for name, value in newest.values.items()}
    return replace(newest, values=values, n_stages=earlier.n_stages + 1, decay=decay)


def require_fit(
    fisher: FisherInformation,
    base_fingerprint: str,
    weights: Mapping[str, torch.Tensor],
    adapter_sha256: str | None = None,
) -> None:
    """Refuse Fisher information of another base, of other shapes or (where given) another adapter.

    Raises:
        ModelError: E33 another base or adapter, E31 other names or shapes.
    """
    advice = "Compute it again for the adapter the update starts from."
    if fisher.base_fingerprint != base_fingerprint:
        raise ModelError(
            f"The Fisher information was computed on base {fisher.base_fingerprint[:12]}, this is "
            f"base {base_fingerprint[:12]}. {advice}",
            code="E33",
        )
    expected = {name: tuple(weight.shape) for name, weight in weights.items()}
    found = {name: tuple(value.shape) for name, value in fisher.values.items()}
    differing = [
        f"{name}: adapter {expected.get(name)}, Fisher information {found.get(name)}"
        for name in sorted(expected | found)
        if expected.get(name) != found.get(name)
    ]
    if differing:
        raise ModelError(
            f"The Fisher information does not fit the adapter's weights:\n"
            f"{bounded_list(differing)}\n{advice}",
            code="E31",
        )
    if adapter_sha256 is not None and fisher.adapter_sha256 != adapter_sha256:
        raise ModelError(
            f"The Fisher information was computed at the weights of adapter "
            f"{fisher.adapter_sha256[:12]}, the update starts from {adapter_sha256[:12]}. {advice}",
            code="E33",
        )


def write_fisher(folder: Path, fisher: FisherInformation) -> dict[str, Any]:
    """Write `fisher` under `folder` and return its facts with the SHA-256 of the values."""
    values = {name: fisher.values[name].cpu().contiguous() for name in sorted(fisher.values)}
    write_bytes(folder / TENSORS_NAME, save(values, {"format": "pt"}))
    facts = fisher.facts() | {"sha256": sha256_file(folder / TENSORS_NAME)}
    write_json(folder / FACTS_NAME, {"format_version": FORMAT_VERSION, **facts})
    return facts


def read_fisher(folder: Path) -> FisherInformation:
    """Read what `write_fisher` wrote, after verifying it.

    Raises:
        ModelError: E29 a file is missing, damaged or changed; E30 values that are negative or not
            finite; E34 a format of another release.
    """
    try:
        facts = read_json(folder / FACTS_NAME)
        if facts["format_version"] != FORMAT_VERSION:
            raise ModelError(
                f"{folder / FACTS_NAME} has format {facts['format_version']}, this COMPASS reads "
                f"{FORMAT_VERSION}. Use the matching release, or compute it again.",
                code="E34",
            )
        content = (folder / TENSORS_NAME).read_bytes()
        if sha256_file(folder / TENSORS_NAME) != facts["sha256"]:
            raise ValueError(f"{TENSORS_NAME} is not the file {FACTS_NAME} names")
        values = load(content)
        names = ("base_fingerprint", "adapter_sha256", "n_examples", "tokens", "n_stages", "decay")
        fisher = FisherInformation(values, **{name: facts[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"The Fisher information in {folder} cannot be read: {error}. Compute it again.",
            code="E29",
        ) from error
    require_sound(fisher)
    return fisher


def require_sound(fisher: FisherInformation) -> None:
    """Refuse values that no mean of squares can have.

    Raises:
        ModelError: E30 negative or non-finite values.
    """
    damaged = [
        name
        for name, value in fisher.values.items()
        if not bool((torch.isfinite(value) & (value >= 0)).all())
    ]
    if damaged or not fisher.values:
        raise ModelError(
            "The Fisher information has no values or negative, NaN or infinite ones in:\n"
            f"{bounded_list(damaged)}\nCompute it again.",
            code="E30",
        )
