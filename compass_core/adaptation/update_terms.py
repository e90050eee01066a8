"""What an update adds to the task's loss: equation (6), L = L_task + λ·L_EWC + β·L_DAR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compass_core.adaptation.fisher import FisherInformation
from compass_core.records import Example

FisherScale = Literal["mean", "max", "raw"]


@dataclass(frozen=True)
class UpdateTerms:
    """The two terms that keep an update from forgetting; each is off at strength 0.

    Attributes:
        fisher: Fisher information of the weights the update starts from; None: no EWC.
        ewc_strength: λ of equation (6).
        replay: Examples trained on before; empty: no replay.
        replay_strength: β of equation (6).
        fisher_scale: What the Fisher information is divided by before λ applies.
        replay_batch_size: Replayed examples per optimiser step; 0: see `replay_batch`.
    """

    fisher: FisherInformation | None = None
    ewc_strength: float = 2.0
    replay: Sequence[Example] = ()
    replay_strength: float = 0.1
    fisher_scale: FisherScale = "mean"
    replay_batch_size: int = 0
