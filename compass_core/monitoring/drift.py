"""Has usage drifted? A permutation test of a window of prompts against a held-out reference.

Two statistics look at the same random splits of both groups: the Jensen-Shannon divergence of the
cluster shares, equation (5), which sees many small changes, and the largest standardised change of
a single cluster or of the share outside every radius, which sees one new topic. The smaller of
their p-values is judged by its own law in those splits (min-p after Westfall and Young), so that
looking twice costs nothing. What the guarantee needs, and what is measured: ``docs/drift.md``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

from compass_core.config import DriftConfig
from compass_core.errors import DataError
from compass_core.monitoring.null_law import NullLaw, reaches
from compass_core.monitoring.permutation import DIGITS, Floats, Pool, PooledPrompts
from compass_core.monitoring.samples import Sample, count_units, pool_groups, resampled, shortfall
from compass_core.seeding import derive_rng

__all__ = ["DriftReport", "MovedCluster", "Sample", "Status", "detect_drift"]

Status = Literal["insufficient", "stable", "alarm"]


class MovedCluster(TypedDict):
    """A cluster whose share changed; `p` is corrected for looking at all of them (max-T)."""

    cluster: int
    reference_share: float
    current_share: float
    z: float
    p: float


@dataclass(frozen=True)
class DriftReport:
    """One check. Numbers are None where the window was insufficient.

    Attributes:
        status: insufficient (no decision), stable or alarm.
        score: Jensen-Shannon divergence of the raw shares, bits, in [0, 1].
        threshold: The score that no change would exceed with chance `level`, for these sizes.
        p_value: Combined p-value.
        p_score: p-value of the score alone.
        p_cluster: p-value of the largest standardised single change alone.
        level: `p_value` at or below it is an alarm.
        novel_reference: Share of reference prompts outside every radius.
        novel_current: Share of current prompts outside every radius.
        p_novel: One-sided permutation p-value of an increase of that share.
        p_novel_exact: The same from the hypergeometric law, where prompts are the unit.
        total_variation: Half the sum of the absolute differences of the raw shares.
        excess: `score` less what it is on average without change, bits.
        moved: Clusters whose change is significant by itself, largest first; of an alarm the
            largest at least, unless only the share outside every radius changed.
        n_reference: Prompts of the reference.
        n_current: Prompts of the window.
        units_reference: Units of the reference that were resampled.
        units_current: Units of the window that were resampled.
        n_permutations: Random splits.
        unit: What was resampled: user, session or prompt.
        seed: Seed of the splits.
        notes: What limits the answer.
    """

    status: Status
    level: float
    n_reference: int
    n_current: int
    units_reference: int
    units_current: int
    unit: str
    seed: int
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    p_score: float | None = None
    p_cluster: float | None = None
    novel_reference: float | None = None
    novel_current: float | None = None
    p_novel: float | None = None
    p_novel_exact: float | None = None
    total_variation: float | None = None
    excess: float | None = None
    moved: list[MovedCluster] = field(default_factory=list)
    n_permutations: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def detect_drift(
    reference: Sample,
    current: Sample,
    n_clusters: int,
    config: DriftConfig,
    *,
    n_languages: int = 1,
    seed: int,
) -> DriftReport:
    """Test whether `current` was drawn from the same usage as `reference`.

    Whole units (`config.unit`) change sides. Where only one group knows its units, that group
    counts one prompt of each; where neither does, every prompt is a unit.

    Args:
        reference: Prompts that the clusters were not fitted on.
        current: Prompts of the window.
        n_clusters: K.
        config: Level, minima, permutations.
        n_languages: Languages watched; the level is shared among them.
        seed: Of the random splits. The result depends on nothing else: not on the order of rows.

    Raises:
        DataError: a cluster id is not in [0, K), or `n_languages` is below 1.
    """
    if n_languages < 1:
        raise DataError(f"n_languages={n_languages}: at least one language is watched.", code="E15")
    rng = derive_rng(seed, "drift")
    groups, unit, notes = resampled(reference, current, config, rng)
    units = (count_units(groups[0]), count_units(groups[1]))
    counted: dict[str, Any] = {
        "level": config.level(n_languages),
        "n_reference": len(reference),
        "n_current": len(current),
        "units_reference": units[0],
        "units_current": units[1],
        "unit": unit,
        "seed": seed,
    }
    missing = shortfall(groups, units, config)
    if missing:
        return DriftReport(status="insufficient", notes=[*missing, *notes], **counted)
    pool = pool_groups(groups, units, n_clusters)
    law = NullLaw.of(pool, rng, config, counted["level"])
    return _report(pool, law, config, counted, notes)


def _report(
    pool: Pool, law: NullLaw, config: DriftConfig, counted: dict[str, Any], notes: list[str]
) -> DriftReport:
    level = counted["level"]
    p_value, p_score, p_cluster = law.p_values()
    score = float(law.score[0])
    excess = score - float(law.score[1:].mean())
    # A topic that no cluster reaches need not move the score at all.
    alarm = p_value <= level and (config.min_effect == 0 or excess >= config.min_effect)
    if p_value <= level and not alarm:
        notes = [*notes, _too_small(excess, config)]
    only_novel = alarm and p_score > level and law.novelty_is_largest()
    if only_novel:
        notes = [*notes, "What changed is the share of prompts outside every cluster's radius."]
    most = max(config.n_permutations, config.max_permutations)
    if not reaches(most, level, n_statistics=2):
        notes = [*notes, _out_of_reach(most, level)]
    shares, novel = _shares(pool)
    return DriftReport(
        status="alarm" if alarm else "stable",
        score=score,
        threshold=law.threshold(level),
        p_value=p_value,
        p_score=p_score,
        p_cluster=p_cluster,
        novel_reference=novel[0],
        novel_current=novel[1],
        p_novel=float(np.mean(law.novelty >= law.novelty[0])),
        p_novel_exact=_novel_tail(pool) if isinstance(pool, PooledPrompts) else None,
        total_variation=float(np.abs(shares[0] - shares[1]).sum() / 2),
        excess=excess,
        moved=_moved(law, shares, level, name_largest=alarm and not only_novel),
        n_permutations=law.n_permutations,
        notes=notes,
        **counted,
    )


def _too_small(excess: float, config: DriftConfig) -> str:
    return (
        f"Significant, but the score exceeds chance by {excess:.4f} bits only; min_effect asks "
        f"for {config.min_effect:g}."
    )


def _out_of_reach(most: int, level: float) -> str:
    lack = "An alarm needs both statistics" if reaches(most, level) else "No alarm is possible"
    return (
        f"{lack}: the p-values of {most:,} permutations are too coarse for a level "
        f"of {level:.2g}. Raise max_permutations to {math.ceil(2 / level):,} or more."
    )


def _shares(pool: Pool) -> tuple[tuple[Floats, Floats], tuple[float, float]]:
    """Return the cluster shares and the novel shares of reference and current."""
    observed = pool.observed()
    own, n_own = observed.counts[0], int(observed.counts.sum())
    other = pool.total - own
    n_other = int(other.sum())
    novel = int(observed.novel[0])
    return (other / n_other, own / n_own), (
        (pool.total_novel - novel) / n_other,
        novel / n_own,
    )


def _moved(
    law: NullLaw, shares: tuple[Floats, Floats], level: float, *, name_largest: bool
) -> list[MovedCluster]:
    """Return the clusters whose change exceeds the largest change of enough random splits."""
    change = law.observed.change[0]
    ascending = np.sort(law.largest)
    # The same rounding as of `largest`, or the largest cluster would not tie with itself.
    fewer = np.searchsorted(ascending, np.round(np.abs(change), DIGITS))
    p = (len(ascending) - fewer) / len(ascending)
    order = np.lexsort((np.arange(len(change)), -np.abs(change)))
    wanted = [k for k in order if p[k] <= level]
    if name_largest and not wanted:
        wanted = [order[0]]
    return [
        MovedCluster(
            cluster=int(k),
            reference_share=float(shares[0][k]),
            current_share=float(shares[1][k]),
            z=float(change[k]),
            p=float(p[k]),
        )
        for k in wanted
    ]


def _novel_tail(pool: PooledPrompts) -> float:
    """Return the chance of at least as many novel prompts in the window, given their total."""
    from scipy.stats import hypergeom

    size = int(pool.total.sum())
    found = int(pool.current_outside.sum())
    return float(hypergeom.sf(found - 1, size, pool.total_novel, pool.n_current))
