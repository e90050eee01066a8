"""What an update adds to the task's loss: equation (6), L = L_task + λ·L_EWC + β·L_DAR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compass_core.adaptation.fisher_files import FisherInformation, FisherScale
from compass_core.config import TrainingConfig
from compass_core.records import Example

REPLAY_PART = 8
"""One replayed example for this many new ones in a step, unless the terms say otherwise."""


@dataclass(frozen=True)
class UpdateTerms:
    """The two terms that keep an update from forgetting; each is off at strength 0.

    Attributes:
        fisher: Fisher information of the weights the update starts from; None: no EWC.
        ewc_strength: λ of equation (6).
        fisher_scale: What the Fisher information is divided by before λ applies.
        replay: Examples trained on before; empty: no replay.
        replay_strength: β of equation (6).
        replay_batch_size: Replayed examples per optimiser step; 0: an eighth of the batch, so that
            replay costs about an eighth of a step.
    """

    fisher: FisherInformation | None = None
    ewc_strength: float = 2.0
    fisher_scale: FisherScale = "mean"
    replay: Sequence[Example] = ()
    replay_strength: float = 0.1
    replay_batch_size: int = 0

    @property
    def uses_ewc(self) -> bool:
        """Whether the EWC term is on."""
        return self.fisher is not None and self.ewc_strength > 0

    @property
    def uses_replay(self) -> bool:
        """Whether the replay term is on."""
        return len(self.replay) > 0 and self.replay_strength > 0

    def replay_batch(self, config: TrainingConfig) -> int:
        """Return the replayed examples per optimiser step under `config`, at least one."""
        return self.replay_batch_size or max(1, round(config.batch_size / REPLAY_PART))
