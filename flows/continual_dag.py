"""One cell of a continual study: a language and a seed, its stream, and every arm's way through it.

    stream ─► cluster ─► (gap ─► sample) × stages ─► T0 ─┬─► (fisher, replay ─► update) × shifts
                                                         ├─► one such chain per arm …
                                                         └─► evaluate on all slices, stage by stage

Selection and updates are the stages of `update-adapter`; what a shift draws is the same for all
arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compass_core.config import ContinualStudyConfig
from compass_core.records import ArtifactRef
from flows.language_dag import Line
from tasks.caching import ModelRef
from tasks.continual import (
    EWC_ARMS,
    FROZEN,
    FULL,
    REHEARSAL,
    REPLAY_ARMS,
    arm_settings,
    mix_in_old,
    stage_seed,
    stream_rows,
)
from tasks.embedding import embed
from tasks.evaluation import evaluate, locate
from tasks.ingestion import Sources
from tasks.pools import Corpus
from tasks.selection import gap_score, gap_settings, sample
from tasks.spaces import cluster
from tasks.training import adapter_ref, train_adapter
from tasks.update_data import first_history, grown_history, update_data, update_space
from tasks.updating import fisher, fisher_settings, replay, update_train, update_training

Refs = dict[str, ArtifactRef]


@dataclass(frozen=True, slots=True)
class StreamShared:
    """What all cells have in common.

    Attributes:
        sources: Models, and what the strategy depends on.
        content: Identity of the corpus that streams are cut from.
        pool: The pool, read and embedded.
    """

    sources: Sources
    content: ModelRef
    pool: ArtifactRef


class Cell:
    """One language and seed on its way: the artefacts of its stages, by name."""

    def __init__(
        self, language: str, seed: int, config: ContinualStudyConfig, shared: StreamShared
    ) -> None:
        self.language = language
        self.seed = seed
        self.config = config
        self.shared = shared
        self.line = Line(language)
        self.stages = range(config.n_shifts + 1)

    def __getitem__(self, name: str) -> ArtifactRef:
        return self.line.artifacts[name]

    def run(self) -> dict[str, Any]:
        """Run every arm over the sequence of shifts; return the outcome as JSON values."""
        self.cut_stream()
        for stage in self.stages:
            self.draw(stage)
        first = self.start()
        arms = {arm: self.follow(arm, first) for arm in self.config.arms}
        return {
            "language": self.language,
            "status": "scored",
            "seed": self.seed,
            "arms": {
                arm: {f"stage {stage}": _plain(made) for stage, made in enumerate(chain)}
                for arm, chain in arms.items()
            },
            "artifacts": _plain(self.line.artifacts),
            "timings": self.line.timings,
        }

    # -- what there is to learn
    def cut_stream(self) -> None:
        """Cut the corpora of all stages; fit the space on coverage and pool alone."""
        for role in ("coverage", "test"):
            self._cut(role, role, 0)
        for stage in self.stages:
            self._cut(f"usage {stage}", "usage", stage)
            self._embed(f"usage {stage}")
        self._embed("coverage")
        self.line.run(
            "cluster",
            cluster,
            language=self.language,
            own={"usage": self._corpus("usage 0"), "coverage": self._corpus("coverage")},
            pool=self.shared.pool,
            config=self.config.clustering.model_copy(update={"fit_on": "coverage+pool"}),
            centre_languages=self.config.embedding.centre_languages,
            seed=self.seed,
        )

    def draw(self, stage: int) -> None:
        """Spend a stage's budget on the gap between its usage and everything trained so far."""
        known = self[f"history {stage - 1}"] if stage else self["coverage"]
        space = self._placed(stage) if stage else self["cluster"]
        selection = self.config.selection
        if stage and self.config.update.budget:
            selection = selection.model_copy(update={"budget": self.config.update.budget})
        self.line.run(
            f"gap-score {stage}",
            gap_score,
            language=self.language,
            rows={"usage": self[f"usage {stage}"], "coverage": known, "test": self["test"]},
            pool=self.shared.pool,
            space=space,
            settings=gap_settings(selection),
        )
        self.line.run(
            f"sample {stage}",
            sample,
            language=self.language,
            own={
                "usage": self._corpus(f"usage {stage}"),
                "coverage": Corpus(rows=known, vectors=self["embed coverage"]),
            },
            pool=self.shared.pool,
            measured={"space": space, "gap": self[f"gap-score {stage}"]},
            behind=self.shared.sources.strategies[selection.strategy],
            config=selection,
            seed=stage_seed(self.seed, stage),
        )
        self._remember(stage, space)

    def _placed(self, stage: int) -> ArtifactRef:
        """Return the space with this stage's usage, and everything trained so far, in it."""
        self.line.run(
            f"locate {stage}",
            locate,
            language=self.language,
            test=self[f"usage {stage}"],
            vectors=self[f"embed usage {stage}"],
            space=self["cluster"],
        )
        return self.line.run(
            f"update-space {stage}",
            update_space,
            language=self.language,
            space=self["cluster"],
            usage=self[f"locate {stage}"],
            history=self[f"history {stage - 1}"],
            pool=self.shared.pool,
        )

    def _remember(self, stage: int, space: ArtifactRef) -> None:
        """Gather what this stage trains on, and everything trained once it is done."""
        if not stage:
            self.line.run(
                "history 0",
                first_history,
                language=self.language,
                coverage=self["coverage"],
                sample=self["sample 0"],
                space=space,
            )
            return
        self.line.run(
            f"update-data {stage}",
            update_data,
            language=self.language,
            sample=self[f"sample {stage}"],
            coverage=self._corpus("coverage"),
            history=self[f"history {stage - 1}"],
            space=space,
            screen=self["test"],
        )
        self.line.run(
            f"history {stage}",
            grown_history,
            language=self.language,
            before=self[f"history {stage - 1}"],
            added=self[f"update-data {stage}"],
        )

    # -- learning it
    def start(self) -> Refs:
        """Train and score stage 0, which all arms share."""
        made = self._train_anew("T0", 0, self["coverage"], self["sample 0"])
        return {"adapter": made, "evaluate": self._score("T0", 0, made)}

    def follow(self, arm: str, first: Refs) -> list[Refs]:
        """Take one arm through all shifts; return its artefacts, stage by stage."""
        chain = [first]
        for stage in self.stages[1:]:
            chain.append(first if arm == FROZEN else self._shift(arm, stage, chain[-1]))
        return chain

    def _shift(self, arm: str, stage: int, before: Refs) -> Refs:
        known, added = self[f"history {stage - 1}"], self[f"update-data {stage}"]
        if arm == FULL:
            made: Refs = {"adapter": self._train_anew(arm, stage, known, added)}
        else:
            made = self._update(arm, stage, before, known, added)
        return made | {"evaluate": self._score(arm, stage, made["adapter"])}

    def _update(
        self, arm: str, stage: int, before: Refs, known: ArtifactRef, added: ArtifactRef
    ) -> Refs:
        """Train on from the adapter of the stage before, with what the arm holds on to."""
        terms: Refs = {}
        if arm in EWC_ARMS:
            terms["fisher"] = self._fisher(arm, stage, before)
        if arm in REPLAY_ARMS:
            terms["replay"] = self._replay(stage, known)
        made = self.line.run(
            f"update-train {arm} {stage}",
            update_train,
            language=self.language,
            data=self._rehearsed(stage, known, added) if arm == REHEARSAL else added,
            models={
                "champion": adapter_ref(before["adapter"]),
                "base": self.shared.sources.base,
            },
            terms={name: terms.get(name) for name in ("fisher", "replay")},
            base_config=self.config.base,
            training=update_training(self.config),
            settings=arm_settings(arm, self.config, self.seed, stage),
            execution=self.config.execution,
        )
        return {"adapter": made, **terms}

    def _fisher(self, arm: str, stage: int, before: Refs) -> ArtifactRef:
        """Measure what the weights before this shift mean; earlier stages are added, not read."""
        first = stage == 1
        return self.line.run(
            "fisher T0" if first else f"fisher {arm} {stage - 1}",
            fisher,
            language=self.language,
            rows=self["history 0" if first else f"update-data {stage - 1}"],
            adapter=adapter_ref(before["adapter"]),
            base=self.shared.sources.base,
            base_config=self.config.base,
            settings=fisher_settings(self.config) | {"seed": self.seed},
            previous=before.get("fisher"),
            execution=self.config.execution,
        )

    def _replay(self, stage: int, known: ArtifactRef) -> ArtifactRef:
        return self.line.run(
            f"replay {stage}",
            replay,
            language=self.language,
            history=known,
            space=self["cluster"],
            share=self.config.update.replay_share,
            most=self.config.update.max_replay_examples,
            seed=stage_seed(self.seed, stage),
        )

    def _rehearsed(self, stage: int, known: ArtifactRef, added: ArtifactRef) -> ArtifactRef:
        return self.line.run(
            f"rehearsal {stage}",
            mix_in_old,
            language=self.language,
            added=added,
            history=known,
            share=self.config.update.replay_share,
            seed=stage_seed(self.seed, stage),
        )

    def _train_anew(
        self, arm: str, stage: int, known: ArtifactRef, added: ArtifactRef
    ) -> ArtifactRef:
        return self.line.run(
            f"adapter-train {arm} {stage}",
            train_adapter,
            language=self.language,
            coverage=known,
            selection=added,
            base=self.shared.sources.base,
            base_config=self.config.base,
            config=self.config.training,
            seed=stage_seed(self.seed, stage),
            execution=self.config.execution,
        )

    def _score(self, arm: str, stage: int, trained: ArtifactRef) -> ArtifactRef:
        """Score one adapter on the slices of all stages."""
        return self.line.run(
            f"evaluate {arm} {stage}",
            evaluate,
            language=self.language,
            test=self["test"],
            base=self.shared.sources.base,
            base_config=self.config.base,
            adapter=adapter_ref(trained),
            config=self.config.evaluation,
            execution=self.config.execution,
        )

    # -- pieces
    def _cut(self, name: str, role: str, stage: int) -> None:
        self.line.run(
            name,
            stream_rows,
            language=self.language,
            role=role,
            position=stage,
            data=self.config.data,
            content=self.shared.content,
            n_shifts=self.config.n_shifts,
            seed=self.seed,
        )

    def _embed(self, name: str) -> None:
        self.line.run(
            f"embed {name}",
            embed,
            language=self.language,
            rows=self[name],
            encoder=self.shared.sources.encoder,
            config=self.config.embedding,
            execution=self.config.execution,
        )

    def _corpus(self, name: str) -> Corpus:
        return Corpus(rows=self[name], vectors=self[f"embed {name}"])


def _plain(refs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
    return {name: ref.to_dict() for name, ref in refs.items()}
