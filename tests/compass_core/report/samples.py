"""Made-up usage over time and a made-up continual study, of realistic shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from compass_core.languages import language_name
from compass_core.report.continual_data import (
    ArmSummary,
    Claim,
    ContinualCell,
    ContinualCost,
    ContinualReport,
)
from compass_core.report.monitoring_data import (
    AccuracyPoint,
    MonitoringReport,
    MovedCluster,
    UpdatePoint,
    WatchedLanguage,
    WindowPoint,
)

CODES = [
    "amh_Ethi",
    "arb_Arab",
    "ben_Beng",
    "ces_Latn",
    "cmn_Hans",
    "deu_Latn",
    "ell_Grek",
    "fil_Latn",
    "fra_Latn",
    "hau_Latn",
    "heb_Hebr",
    "hin_Deva",
    "ibo_Latn",
    "ind_Latn",
    "ita_Latn",
    "jpn_Jpan",
    "kir_Cyrl",
    "kor_Hang",
    "lit_Latn",
    "mlg_Latn",
    "zsm_Latn",
    "npi_Deva",
    "nld_Latn",
    "nya_Latn",
    "pes_Arab",
    "pol_Latn",
    "por_Latn",
    "ron_Latn",
    "rus_Cyrl",
    "sin_Sinh",
    "sna_Latn",
    "som_Latn",
    "spa_Latn",
    "srp_Cyrl",
    "swe_Latn",
    "swh_Latn",
    "tel_Telu",
    "tur_Latn",
    "ukr_Cyrl",
    "vie_Latn",
    "yor_Latn",
    "cat_Latn",
]
LABELS = (
    "bei, soko, sarafu",
    "دولة، مدينة، إقليم",
    "मौसम, बारिश, तापमान",
    "visa, passport, embassy",
    "国家、城市、地区",
    "a<b>c & d|e",
)
FIRST = datetime(2026, 10, 1, tzinfo=UTC)
DAY = timedelta(days=1)
N_WINDOWS = 44
STORIES = ("drift", "promoted", "refused", "alarm", "updating", "thin", "none", "failed", "broken")


def watched(index: int, story: str) -> WatchedLanguage:
    """Return one language whose windows tell `story`, or are calm."""
    rng = np.random.default_rng([7, index])
    code = CODES[index]
    name = language_name(code)
    if story == "broken":
        return WatchedLanguage(
            language=code, name=name, error="The history of decided windows cannot be read."
        )
    if story == "none":
        return WatchedLanguage(language=code, name=name)
    calm = story in {"", "thin"}
    shift = N_WINDOWS if calm else {"drift": 42, "alarm": 43, "updating": 42}.get(story, 28)
    windows = [_window(rng, day, day >= shift, story) for day in range(N_WINDOWS)]
    updates, champions = _updates(windows, story, index)
    version = max((point.version for point in champions), default="3")
    return WatchedLanguage(
        language=code,
        name=name,
        champion=version,
        base="starter-0.9M",
        windows=windows,
        updates=updates,
        accuracy=champions,
        event="5f" * 16 if story in {"drift", "updating"} else "",
        event_state={"drift": "pending", "updating": "taken"}.get(story, ""),  # type: ignore[arg-type]
        n_clusters=50,
        n_quarantined={"no time zone": 12, "another language": 41} if index % 5 == 0 else {},
    )


def _window(rng: np.random.Generator, day: int, shifted: bool, story: str) -> WindowPoint:
    start = FIRST + day * DAY
    weekend = start.weekday() >= 5
    n_prompts = int(
        rng.integers(150, 420) if weekend or story == "thin" else rng.integers(900, 3000)
    )
    status = "insufficient" if n_prompts < 500 else "stable"
    if day == 17:
        n_prompts, status = 0, "empty"
    answered = story in {"promoted"} and day > 31
    changed = shifted and not answered
    alarm = status == "stable" and (changed or (not shifted and rng.random() < 0.02))
    threshold = 49 / (8 * np.log(2)) / n_prompts * 1.45 if n_prompts else None
    score = None if threshold is None else threshold * rng.uniform(0.5, 0.9)
    if changed and score is not None:
        score += rng.uniform(0.008, 0.02)
    decisive = 43 if story in {"drift", "updating"} else 29
    drift = bool(alarm and changed and day == decisive)
    decided = status in {"stable", "alarm"}
    p = (0.00005 if changed else 0.0002) if alarm else float(rng.uniform(0.05, 0.99))
    reference = 0.034
    novel = reference + rng.normal(0, 0.004) + (0.03 if changed else 0.0)
    moved = [
        MovedCluster(label, share, (share or 0.0) + 0.03 * (1 + place))
        for place, (label, share) in enumerate(
            zip(LABELS, (0.02, None, 0.041, 0.01, 0.09), strict=False)
        )
    ]
    return WindowPoint(
        name=f"{start:%Y-%m-%d}",
        start=start.isoformat(),
        end=(start + DAY).isoformat(),
        n_prompts=n_prompts,
        n_units=n_prompts // 4 or None,
        status="alarm" if alarm else status,  # type: ignore[arg-type]
        score=score if decided else None,
        threshold=threshold if decided else None,
        p_value=p if decided else None,
        level=0.01 / 42 if decided else None,
        p_score=min(1.0, p * 1.6) if decided else None,
        p_cluster=p if decided else None,
        p_novel=0.2 if decided else None,
        novel_current=float(novel) if n_prompts else None,
        novel_reference=reference if n_prompts else None,
        moved=moved if alarm else [],
        drift_detected=drift,
        in_cooldown=bool(alarm and 29 < day < 33),
        n_reference=8_400,
        units_reference=1_950,
        n_permutations=19_999 if alarm else 999 if decided else None,
        unit="user",
        seed=int(rng.integers(0, 2**31)),
        champion="3" if day < 32 or story != "promoted" else "4",
        n_late=int(rng.integers(0, 3)),
        notes=["Smaller than 200 users: no decision."] if status == "insufficient" else [],
    )


def _updates(
    windows: list[WindowPoint], story: str, index: int
) -> tuple[list[UpdatePoint], list[AccuracyPoint]]:
    first = 0.47 + 0.002 * index
    champions = [
        AccuracyPoint(
            (FIRST - 40 * DAY).isoformat(), "1", first - 0.08, first - 0.12, first - 0.04
        ),
        AccuracyPoint((FIRST - 9 * DAY).isoformat(), "3", first, first - 0.04, first + 0.04, 540),
    ]
    decided = (FIRST + 31 * DAY + timedelta(hours=2)).isoformat()
    if story == "promoted":
        reasons = ["61 items better, 22 worse than the champion: p < .001", "no older slice lost"]
        update = UpdatePoint(
            time=decided,
            event="5f" * 16,
            version="4",
            status="promoted",
            reasons=reasons,
            accuracy_before=0.44,
            accuracy_after=0.58,
            forgetting=0.004,
        )
        return [update], [*champions, AccuracyPoint(decided, "4", 0.58, 0.54, 0.62, 480)]
    if story in {"refused", "failed"}:
        update = UpdatePoint(
            time=decided,
            event="5f" * 16,
            version="4" if story == "refused" else "",
            status=story,  # type: ignore[arg-type]
            reasons=["slice first: 12 items better, 41 worse, p = .002 after Holm's correction"]
            if story == "refused"
            else ["E31 the pool has no rows for 7 of 9 clusters with a gap"],
            accuracy_before=0.44,
            accuracy_after=0.52 if story == "refused" else None,
            forgetting=0.061 if story == "refused" else None,
        )
        return [update], champions
    return [], champions


def monitoring_report(n_languages: int = 42) -> MonitoringReport:
    """Return a page of many languages; the numbers are made up."""
    stories = [*STORIES, "promoted", "thin"]
    languages = [
        watched(index, stories[index // 3] if index % 3 == 0 and index // 3 < len(stories) else "")
        for index in range(n_languages)
    ]
    return MonitoringReport(
        created="2026-11-14T03:00:00+00:00",
        languages=languages,
        notes=["Made-up numbers, to look at the page."],
        links={"Prefect UI": "http://127.0.0.1:4200"},
        versions={"compass": "0.1.0"},
    )


ARMS = ("frozen", "naive", "ewc-only", "replay-only", "rehearsal", "ecda", "full")
_LEARNING = (0.0, 0.14, 0.125, 0.135, 0.13, 0.133, 0.14)
_LOSS = (0.0, 0.09, 0.045, 0.04, 0.035, 0.022, 0.008)
_COST = (0.0, 0.16, 0.18, 0.17, 0.17, 0.19, 1.0)


def continual_report() -> ContinualReport:
    """Return a continual study of three languages, three seeds, six stages; made up."""
    rng = np.random.default_rng(3)
    languages, seeds, n_stages = ["swh_Latn", "arb_Arab", "hin_Deva"], [0, 1, 2], 6
    cells, costs, summary = [], [], []
    for arm, learning, loss, cost in zip(ARMS, _LEARNING, _LOSS, _COST, strict=True):
        for place, language in enumerate(languages):
            for seed in seeds:
                for stage in range(n_stages):
                    tokens = int(40_000 * cost * (stage + 1))
                    replay = tokens // 5 if arm in {"replay-only", "rehearsal", "ecda"} else 0
                    fisher = tokens // 10 if arm in {"ewc-only", "ecda"} else 0
                    costs.append(
                        ContinualCost(language, seed, arm, stage, tokens, replay, fisher, 9.0)
                    )
                    for part in range(n_stages):
                        learnt = 0.0 if part > stage or (arm == "frozen" and part) else learning
                        forgotten = loss * max(0, min(stage - part, 2)) / 2
                        value = 0.4 + 0.03 * place + learnt - forgotten + rng.normal(0, 0.012)
                        cells.append(ContinualCell(language, seed, arm, stage, part, float(value)))
            summary.append(_summary(arm, learning + 0.01 * place, loss, cost, language, 0.02))
        summary.append(_summary(arm, learning, loss, cost, "", 0.012))
    return ContinualReport(
        languages=languages,
        seeds=seeds,
        arms=list(ARMS),
        n_stages=n_stages,
        cells=cells,
        costs=costs,
        summary=summary,
        claims=[
            Claim("ECDA forgets at most a third of what naive forgets", "2.2 of 9.0 points", True),
            Claim("ECDA learns at least 90 % of what naive learns", "13.3 of 14.0 points", True),
            Claim("ECDA is within 1 point of full retraining", "1.4 points below", False),
            Claim("at 25 % of its cost or less", "19 %", True),
        ],
    )


def _summary(
    arm: str, learning: float, loss: float, cost: float, language: str, half: float
) -> ArmSummary:
    values = {"learning": learning, "forgetting": loss, "final_accuracy": 0.4 + learning - loss}
    return ArmSummary(
        arm=arm,
        **values,
        cost_tokens=2_500_000 * cost,
        cost_share_of_full=cost,
        intervals={name: (value - half, value + half) for name, value in values.items()},
        language=language,
    )
