"""The DAG of one language over cached stage tasks; both doors run this one function.

ingest ─► check ─► embed ─► cluster ─► gap-score ─► sample ─► adapter-train ─► evaluate
promote ◄─ decide ◄─┘
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.transactions import CommitMode, transaction

from compass_core.config import Recipe, SelectionConfig
from compass_core.faults import fault_point
from compass_core.records import ArtifactRef
from tasks.caching import ModelRef, as_it_is, as_ref, as_refs, parts_before
from tasks.embedding import embed, embed_corpora
from tasks.estimating import estimate_language
from tasks.evaluation import evaluate, locate
from tasks.ingestion import (
    ROLES,
    PoolSource,
    Sources,
    check_pool,
    check_sources,
    corpus_config,
    ingest,
    ingest_corpora,
)
from tasks.interruption import go_on_or_raise, stop_requested
from tasks.lineage import FIRST_SLICE, embedding_identity, write_lineage
from tasks.pools import Corpus, gather_pool
from tasks.preflight import all_refused, budget_check
from tasks.progress import beat, pieces_of_work
from tasks.promotion import (
    decide,
    find_champion,
    is_settled,
    pending_without_registry,
    read_decision,
    register_and_promote,
    registered_name,
    settle_champion,
    was_rolled_back,
)
from tasks.reporting import attempt_record, name_finished
from tasks.retries import with_retries
from tasks.selection import draw_map, gap_score, gap_settings, sample
from tasks.spaces import cluster
from tasks.training import adapter_ref, train_adapter

Cell = tuple[str, int]
"""A language and a seed."""
ZERO_SHOT = "zero-shot"
ARM_STAGES = ("sample", "adapter-train", "evaluate")


@dataclass(frozen=True, slots=True)
class Shared:
    """What all languages of a run have in common.

    Attributes:
        sources: Where data and models are, and their fingerprints.
        pool: The pool: its shards, read and embedded.
        corpora: By language and seed, the artefacts of its own corpora.
        refused: By language and seed, why its corpora cannot be used.
    """

    sources: Sources
    pool: ArtifactRef
    corpora: Mapping[Cell, Mapping[str, ArtifactRef]]
    refused: Mapping[Cell, Exception]


@dataclass
class Line:
    """One language on its way through the stages: its artefacts and timings so far."""

    language: str
    artifacts: dict[str, ArtifactRef] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, stage_task: Any, **params: Any) -> ArtifactRef:
        """Run one stage, keep its artefact under `name`, and report progress.

        The stage commits when it ends: its record is written and its lock is free, whatever becomes
        of the task around it. Small helpers of the stages (`tasks.caching.part`) are no task runs:
        a task run costs more than finding what one of them made, and 42 languages have hundreds.
        """
        with self._step(name):
            if isinstance(stage_task, Task):
                with transaction(commit_mode=CommitMode.EAGER):
                    ref = as_ref(stage_task(**as_it_is(params)))
            else:
                ref = with_retries(functools.partial(stage_task, **params))
            self.artifacts[name] = ref
        return ref

    def run_parts(self, name: str, stage_task: Any, **params: Any) -> None:
        """Run one stage of several artefacts, keep those that it makes, and report progress."""
        with self._step(name):
            try:
                self.artifacts |= as_refs(stage_task(**as_it_is(params)))
            except Exception as error:
                self.artifacts |= parts_before(error)
                raise

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        go_on_or_raise()
        beat(self.language, name, "running")
        started, before = time.monotonic(), pieces_of_work()
        try:
            fault_point(f"{name.split(maxsplit=1)[0]}.start", self.language)
            yield
        except BaseException:
            if not stop_requested():
                beat(self.language, name, "failed")
            raise
        self.timings[name] = time.monotonic() - started
        state = "done" if pieces_of_work() > before else "cached"
        beat(self.language, name, state, 1.0, f"{self.timings[name]:.1f} s")


def prepare_shared(recipe: Recipe, base_folder: str, cells: Sequence[Cell]) -> Shared:
    """Check everything that can be wrong, then embed the pool once for all languages.

    Every corpus of every language is read before anything expensive starts. A language whose
    corpora cannot be used is kept as refused and stops nobody else.

    Raises:
        InputError: a source that all languages need cannot be used, or no language can be adapted.
    """
    sources = check_sources(recipe, base_folder)
    line = Line("")
    pool_rows = ingest_pool(line, sources.pool)
    budget_fits = budget_check(recipe, pool_rows)
    corpora: dict[Cell, Mapping[str, ArtifactRef]] = {}
    refused: dict[Cell, Exception] = {}
    for language, seed in cells:
        own = Line(language)
        try:
            ingest_language(own, recipe.model_copy(update={"seed": seed}), sources, pool_rows)
            budget_fits(language)
            corpora[language, seed] = own.artifacts
        except Exception as error:
            name_finished(error, _plain(own.artifacts))
            refused[language, seed] = error
            beat(language, "corpora", "failed", detail=str(error))
    if not corpora:
        raise all_refused(refused)
    shards = embed_shards(line, pool_rows, sources, recipe)
    pool = line.run("pool", gather_pool, language="", shards=shards)
    return Shared(sources, pool, corpora, refused)


def embed_shards(
    line: Line, shards: Sequence[ArtifactRef], sources: Sources, recipe: Recipe
) -> list[Corpus]:
    """Embed the shards of a pool, which belong to no language."""
    return [
        Corpus(
            rows=rows,
            vectors=line.run(
                "embed",
                embed,
                language="",
                rows=rows,
                encoder=sources.encoder,
                config=recipe.embedding,
                execution=recipe.execution,
            ),
        )
        for rows in shards
    ]


def adapt(language: str, recipe: Recipe, shared: Shared, *, promote: bool = True) -> dict[str, Any]:
    """Select, train, evaluate and promote for one language; return the outcome as JSON values.

    Args:
        language: Canonical code.
        recipe: Everything to do.
        shared: Pool and models.
        promote: Whether the registry is asked at all (a study never registers).
    """
    if (language, recipe.seed) in shared.refused:
        raise shared.refused[language, recipe.seed]
    line = Line(language, dict(shared.corpora[language, recipe.seed]))
    try:
        return _adapt(line, recipe, shared, promote=promote)
    except Exception as error:
        name_finished(error, _plain(line.artifacts))
        raise


def _adapt(line: Line, recipe: Recipe, shared: Shared, *, promote: bool) -> dict[str, Any]:
    language, dry_run = line.language, recipe.execution.dry_run
    place(line, recipe, shared)
    arms: dict[str, dict[str, Any]] = {}
    strategies = dict.fromkeys((*recipe.baselines, recipe.selection.strategy))
    for strategy in strategies:
        config = recipe.selection.model_copy(update={"strategy": strategy})
        arms[strategy] = {"sample": select(line, recipe, config, shared.sources)}
    if not dry_run:
        arms[ZERO_SHOT] = {"evaluate": score(line, recipe, shared, ZERO_SHOT, None)}
        for strategy in strategies:
            arms[strategy] |= train_and_score(line, recipe, shared, strategy)
        locate_test(line)
    outcome = {
        "language": language,
        "status": "selected" if dry_run else "scored",
        "seed": recipe.seed,
        "arms": {name: _plain(arm) for name, arm in arms.items()},
    }
    if promote:
        show(line, recipe, shared)
    if dry_run:
        outcome["estimate"] = estimate_language(
            line.artifacts["coverage"],
            line.artifacts[f"sample {recipe.selection.strategy}"],
            shared.sources.base,
            recipe.training,
        )
    elif promote:
        with pending_without_registry(language):
            outcome |= settle(line, recipe, shared, arms)
    return outcome | {
        "artifacts": _plain(own_artifacts(line, recipe.selection.strategy)),
        "timings": line.timings,
    }


def own_artifacts(line: Line, main: str) -> dict[str, ArtifactRef]:
    """Return a language's artefacts without those of the baselines, which stand under their arm."""
    found = {}
    for name, ref in line.artifacts.items():
        stage, _, arm = name.partition(" ")
        if stage not in ARM_STAGES:
            found[name] = ref
        elif arm == main:
            found[stage] = ref
    return found


def ingest_pool(line: Line, sources: Sequence[PoolSource]) -> list[ArtifactRef]:
    """Read every shard of the pool, and check those of many against each other."""
    shards = {
        source.label: line.run(
            "ingest",
            ingest,
            language="",
            role="pool",
            corpus=source.corpus,
            content=source.content,
            seed=0,
            label=source.label,
        )
        for source in sources
    }
    if len(shards) > 1:
        line.run("check-pool", check_pool, shards=shards)
    return list(shards.values())


def ingest_language(
    line: Line, recipe: Recipe, sources: Sources, pool: Sequence[ArtifactRef]
) -> None:
    """Read usage, coverage and test set, and check them against each other."""
    line.run_parts(
        "ingest",
        ingest_corpora,
        language=line.language,
        corpora={role: (corpus_config(recipe, role), sources.corpora[role]) for role in ROLES},
        seed=recipe.seed,
        pool=list(pool),
    )


def place(line: Line, recipe: Recipe, shared: Shared) -> None:
    """Embed, cluster and measure the gap; the test set is embedded if it will be scored."""
    roles = [role for role in ROLES if role != "test" or not recipe.execution.dry_run]
    line.run_parts(
        "embed",
        embed_corpora,
        language=line.language,
        rows={role: line.artifacts[role] for role in roles},
        encoder=shared.sources.encoder,
        config=recipe.embedding,
        execution=recipe.execution,
    )
    line.artifacts["pool"] = shared.pool
    line.run(
        "cluster",
        cluster,
        language=line.language,
        own=own_corpora(line),
        pool=shared.pool,
        config=recipe.clustering,
        centre_languages=recipe.embedding.centre_languages,
        seed=recipe.seed,
    )
    line.run(
        "gap-score",
        gap_score,
        language=line.language,
        rows={role: line.artifacts[role] for role in ("usage", "coverage", "test")},
        pool=shared.pool,
        space=line.artifacts["cluster"],
        settings=gap_settings(recipe.selection),
    )


def own_corpora(line: Line) -> dict[str, Corpus]:
    """Return usage and coverage with their embeddings."""
    return {
        role: Corpus(rows=line.artifacts[role], vectors=line.artifacts[f"embed {role}"])
        for role in ("usage", "coverage")
    }


def select(line: Line, recipe: Recipe, config: SelectionConfig, sources: Sources) -> ArtifactRef:
    """Spend the budget with one strategy."""
    return line.run(
        f"sample {config.strategy}",
        sample,
        language=line.language,
        own=own_corpora(line),
        pool=line.artifacts["pool"],
        measured={"space": line.artifacts["cluster"], "gap": line.artifacts["gap-score"]},
        behind=sources.strategies[config.strategy],
        config=config,
        seed=recipe.seed,
    )


def train_and_score(
    line: Line, recipe: Recipe, shared: Shared, strategy: str
) -> dict[str, ArtifactRef]:
    """Train one arm's adapter and score it."""
    trained = line.run(
        f"adapter-train {strategy}",
        train_adapter,
        language=line.language,
        coverage=line.artifacts["coverage"],
        selection=line.artifacts[f"sample {strategy}"],
        base=shared.sources.base,
        base_config=recipe.base,
        config=recipe.training,
        seed=recipe.seed,
        execution=recipe.execution,
    )
    return {
        "adapter": trained,
        "evaluate": score(line, recipe, shared, strategy, adapter_ref(trained)),
    }


def score(
    line: Line, recipe: Recipe, shared: Shared, arm: str, adapter: ModelRef | None
) -> ArtifactRef:
    """Score one adapter, or the base, on the test items."""
    return line.run(
        f"evaluate {arm}",
        evaluate,
        language=line.language,
        test=line.artifacts["test"],
        base=shared.sources.base,
        base_config=recipe.base,
        adapter=adapter,
        config=recipe.evaluation,
        execution=recipe.execution,
    )


def locate_test(line: Line) -> None:
    """Place the scored test items in the clusters, for the report and the gate."""
    line.run(
        "locate",
        locate,
        language=line.language,
        test=line.artifacts["test"],
        vectors=line.artifacts["embed test"],
        space=line.artifacts["cluster"],
    )


def show(line: Line, recipe: Recipe, shared: Shared) -> None:
    """Draw the map of the space that the report shows."""
    line.run(
        "map",
        draw_map,
        language=line.language,
        own=own_corpora(line),
        pool=shared.pool,
        space=line.artifacts["cluster"],
        selection=line.artifacts[f"sample {recipe.selection.strategy}"],
        seed=recipe.seed,
    )


def settle(
    line: Line, recipe: Recipe, shared: Shared, arms: Mapping[str, Mapping[str, ArtifactRef]]
) -> dict[str, Any]:
    """Decide against what serves now and move the champion if the challenger is better."""
    fault_point("settle.start", line.language)
    arm = recipe.selection.strategy
    name = registered_name(recipe.base.model, shared.sources.base, line.language)
    champion = find_champion(name)
    serving = champion["version"] if champion else None
    challenger = adapter_ref(arms[arm]["adapter"])
    if champion is not None and champion["adapter_sha256"] == challenger.sha256:
        line.artifacts["lineage"] = first_lineage(line, recipe, shared)
        if not is_settled(champion):
            settle_champion(line.language, name, champion, line.artifacts["lineage"])
        return _known(name, serving, "promoted", f"This very adapter serves as version {serving}.")
    rolled_back = was_rolled_back(name, challenger.sha256)
    if rolled_back is not None:
        reason = f"This very adapter was rolled back before (version {rolled_back})."
        return _known(name, serving, "kept", reason)
    before = arms[ZERO_SHOT]["evaluate"]
    if champion is not None:
        adapter = ModelRef(champion["path"], champion["adapter_sha256"])
        before = score(line, recipe, shared, "champion", adapter)
    decision = line.run(
        "decide",
        decide,
        language=line.language,
        before=before,
        after=arms[arm]["evaluate"],
        groups={
            "test": line.artifacts["test"],
            "coverage": line.artifacts["coverage"],
            "space": line.artifacts["cluster"],
            "locate": line.artifacts["locate"],
        },
        config=recipe.promotion,
    )
    verdict = read_decision(decision) | {"champion": serving}
    line.artifacts["lineage"] = first_lineage(line, recipe, shared)
    moved = register_and_promote(
        line.language,
        name,
        attempt_record(line.language, recipe, arm, line.artifacts, arms),
        verdict,
        shared.sources.base,
        recipe.base,
        recipe.execution,
    )
    return {
        "status": moved["status"],
        "registry": {"name": name, "version": moved["version"], "run_id": moved["run_id"]},
        "verdict": verdict,
    }


def first_lineage(line: Line, recipe: Recipe, shared: Shared) -> ArtifactRef:
    """Name what the adapter stands on, for the updates to come."""
    arm = recipe.selection.strategy
    named = {role: line.artifacts[role] for role in ("usage", "coverage", "test", "pool")}
    return write_lineage(
        language=line.language,
        embedded_by=embedding_identity(recipe, shared.sources.encoder),
        refs=named | {"sample": line.artifacts[f"sample {arm}"]},
        slices=[(FIRST_SLICE, line.artifacts["test"])],
        facts={"strategy": arm, "seed": recipe.seed},
    )


def _known(name: str, serving: str | None, status: str, reason: str) -> dict[str, Any]:
    """Return the outcome of an adapter that the registry has an opinion of already."""
    return {
        "status": status,
        "registry": {"name": name, "version": serving, "run_id": ""},
        "verdict": {"promote": False, "champion": serving, "reasons": [reason]},
    }


def _plain(refs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
    return {name: ref.to_dict() for name, ref in refs.items()}
