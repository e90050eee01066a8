"""The update of one language, from a drift event to a verdict, over cached stage tasks.

new usage ─► gap-score ─► sample ─► update-data ─► update-train ─► evaluate ─► decide ─► promote
history ─► fisher, replay ────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compass_core.config import AdaptConfig
from compass_core.monitoring.drift import Sample
from compass_core.records import ArtifactRef
from flows.language_dag import Line
from tasks.baseline import Baseline
from tasks.caching import ModelRef
from tasks.embedding import embed
from tasks.evaluation import evaluate
from tasks.ingestion import RETENTION, Sources, corpus_config, ingest, retention_language
from tasks.lineage import embedding_identity, keep_slices, write_lineage
from tasks.pools import Corpus, gather_pool
from tasks.promotion import (
    pending_without_registry,
    read_decision,
    register_and_promote,
    was_rolled_back,
)
from tasks.selection import gap_score, gap_settings, sample
from tasks.training import adapter_ref, train_adapter
from tasks.update_data import (
    exam,
    first_history,
    grown_history,
    keep_usage,
    new_slice,
    require_data,
    update_data,
    update_space,
)
from tasks.update_records import update_attempt
from tasks.updating import (
    decide_on_update,
    fisher,
    fisher_settings,
    replay,
    update_settings,
    update_train,
    update_training,
)

UPDATED, RETRAINED = "update", "retrain"
"""Arms: trained on from the champion, or anew."""


class Update:
    """One update on its way: what it starts from, and the artefacts made so far."""

    def __init__(
        self,
        config: AdaptConfig,
        sources: Sources,
        baseline: Baseline,
        champion: Mapping[str, str],
        event: str,
    ) -> None:
        self.config = config
        self.sources = sources
        self.baseline = baseline
        self.lineage = baseline.lineage
        self.language = baseline.lineage.language
        self.champion = ModelRef(champion["path"], champion["adapter_sha256"])
        self.event = event
        self.line = Line(self.language)
        self.line.artifacts |= {"lineage before": self.lineage.ref, "space": baseline.space}

    def __getitem__(self, name: str) -> ArtifactRef:
        return self.line.artifacts[name]

    # -- what to train on
    def gather(self, samples: Sequence[Sample]) -> None:
        """Read and embed today's corpora, and put everything into the champion's space."""
        self.line.artifacts["usage"] = keep_usage(
            self.language, samples, self.config.monitoring.drift
        )
        shards = [
            self._embedded(f"pool {source.label}".strip(), "", self._ingest_pool(source))
            for source in self.sources.pool
        ]
        self.line.run("pool", gather_pool, language="", shards=shards)
        for role in ("coverage", "test"):
            self._ingest(role, self.language, role)
            self._embedded(role, self.language, self[role])
        self._history()
        self.line.run(
            "update-space",
            update_space,
            language=self.language,
            space=self["space"],
            usage=self["usage"],
            history=self["history"],
            pool=self["pool"],
        )

    def _history(self) -> None:
        known = self.lineage.refs.get("history")
        if known is not None:
            self.line.artifacts["history"] = known
            return
        self.line.run(
            "history",
            first_history,
            language=self.language,
            coverage=self.lineage.refs["coverage"],
            sample=self.lineage.refs["sample"],
            space=self["space"],
        )

    def select(self) -> None:
        """Spend the budget on the gap between the new usage and everything trained so far."""
        config = self.config.selection
        if self.config.update.budget:
            config = config.model_copy(update={"budget": self.config.update.budget})
        self.line.run(
            "gap-score",
            gap_score,
            language=self.language,
            rows={
                "usage": self.lineage.refs["usage"],
                "coverage": self["history"],
                "test": self["screen"],
            },
            pool=self["pool"],
            space=self["update-space"],
            settings=gap_settings(config),
        )
        own = {
            "usage": self._corpus_of_lineage("usage"),
            "coverage": Corpus(rows=self["coverage"], vectors=self["embed coverage"]),
        }
        self.line.run(
            "sample",
            sample,
            language=self.language,
            own=own,
            pool=self["pool"],
            measured={"space": self["update-space"], "gap": self["gap-score"]},
            behind=self.sources.strategies[config.strategy],
            config=config,
            seed=self.config.seed,
        )
        self.line.run(
            "update-data",
            update_data,
            language=self.language,
            sample=self["sample"],
            coverage=Corpus(rows=self["coverage"], vectors=self["embed coverage"]),
            history=self["history"],
            space=self["update-space"],
            screen=self["screen"],
        )
        require_data(self.language, self["update-data"])

    # -- training
    def train(self) -> ModelRef:
        """Train on from the champion by equation (6)."""
        if self._penalised:
            self._fisher("fisher", self["history"], self.champion, self.lineage.refs.get("fisher"))
        self._replay()
        trained = self.line.run(
            "update-train",
            update_train,
            language=self.language,
            data=self["update-data"],
            models={"champion": self.champion, "base": self.sources.base},
            terms={"fisher": self.line.artifacts.get("fisher"), "replay": self._buffer()},
            base_config=self.config.base,
            training=update_training(self.config),
            settings=update_settings(self.config),
            execution=self.config.execution,
        )
        return adapter_ref(trained)

    def retrain(self) -> ModelRef:
        """Train anew, on everything trained so far and the data of the update."""
        trained = self.line.run(
            "adapter-train",
            train_adapter,
            language=self.language,
            coverage=self["history"],
            selection=self["update-data"],
            base=self.sources.base,
            base_config=self.config.base,
            config=self.config.training,
            seed=self.config.seed,
            execution=self.config.execution,
        )
        return adapter_ref(trained)

    # -- deciding
    def examine(self) -> None:
        """Draw the slice of the new usage and put all slices into one test."""
        self.line.run(
            "slice",
            new_slice,
            language=self.language,
            test=Corpus(rows=self["test"], vectors=self["embed test"]),
            usage=self["usage"],
            history=self["history"],
            space=self["space"],
            limits={
                "least": self.config.promotion.min_items,
                "most": max(self.config.update.slice_items, self.config.promotion.min_items),
            },
            seed=self.config.seed,
        )
        retention = None
        if corpus_config(self.config, RETENTION) is not None:
            self._ingest(RETENTION, retention_language(self.config), "test")
            retention = self[RETENTION]
        self.line.run(
            "exam",
            exam,
            language=self.language,
            slices=self._slices(),
            retention=retention,
        )
        # What is trained on must resemble no item of any slice, and none that may be asked later.
        self.line.run(
            "screen",
            exam,
            language=self.language,
            slices=[*self._slices(), ("test", self["test"])],
            retention=retention,
        )

    def score(self, name: str, adapter: ModelRef) -> ArtifactRef:
        """Score one adapter on the items of all slices."""
        return self.line.run(
            f"evaluate {name}",
            evaluate,
            language=self.language,
            test=self["exam"],
            base=self.sources.base,
            base_config=self.config.base,
            adapter=adapter,
            config=self.config.evaluation,
            execution=self.config.execution,
        )

    def decide(self, name: str) -> dict[str, Any]:
        """Compare an arm with the champion; return the verdict."""
        decision = self.line.run(
            f"decide {name}",
            decide_on_update,
            language=self.language,
            before=self["evaluate champion"],
            after=self[f"evaluate {name}"],
            exam=self["exam"],
            new=self.slice_name,
            promotion=self.config.promotion,
            update=self.config.update,
        )
        verdict = read_decision(decision) | {"champion": self.baseline.version}
        return verdict

    def settle(self, name: str, adapter: ModelRef, verdict: dict[str, Any]) -> dict[str, Any]:
        """Register an arm with everything it stands on, and promote it if the verdict says so."""
        rolled_back = was_rolled_back(self.baseline.name, adapter.sha256)
        if rolled_back is not None:
            reason = f"This very adapter was rolled back before (version {rolled_back})."
            verdict |= {"promote": False, "reasons": [reason, *verdict["reasons"]]}
        self.line.run(
            "history after",
            grown_history,
            language=self.language,
            before=self["history"],
            added=self["update-data"],
        )
        if self._penalised and name == UPDATED:
            self._fisher("fisher after", self["update-data"], adapter, self["fisher"])
        elif self._penalised:
            self._fisher("fisher after", self["history after"], adapter, None)
        self.line.artifacts["lineage"] = self._lineage(name)
        with pending_without_registry(self.language):
            moved = register_and_promote(
                self.language,
                self.baseline.name,
                update_attempt(self.config, self.line.artifacts, self.event, name, verdict),
                verdict,
                self.sources.base,
                self.config.base,
                self.config.execution,
            )
        return {
            "status": "promoted" if verdict["promote"] else "refused",
            "arm": name,
            "registry": {"name": self.baseline.name, "version": moved["version"]}
            | {"run_id": moved["run_id"]},
            "verdict": verdict,
        }

    @property
    def slice_name(self) -> str:
        """What the slice of the new usage is called: by its usage and its items."""
        return f"{self['usage'].fingerprint[:6]}-{self['slice'].sha256[:4]}"

    @property
    def _penalised(self) -> bool:
        """Whether equation (7) takes part; without it no Fisher information is measured."""
        return self.config.update.ewc_strength > 0

    # -- pieces
    def _lineage(self, name: str) -> ArtifactRef:
        old = self.lineage.refs
        refs = {role: old[role] for role in ("usage", "coverage", "test", "sample")}
        refs |= {
            "pool": self["pool"],
            "space": self["space"],
            "reference": self["usage"],
            "history": self["history after"],
        }
        refs |= {n: self[n] for n in ("replay",) if n in self.line.artifacts}
        if self._penalised:
            refs["fisher"] = self["fisher after"]
        slices = keep_slices(
            self.lineage.slices,
            (self.slice_name, self["slice"]),
            self.config.update.max_slices,
        )
        return write_lineage(
            language=self.language,
            embedded_by=embedding_identity(self.config, self.sources.encoder),
            refs=refs,
            slices=slices,
            facts={"arm": name, "seed": self.config.seed, "event": self.event},
        )

    def _slices(self) -> list[tuple[str, ArtifactRef]]:
        return [*self.lineage.slices.items(), (self.slice_name, self["slice"])]

    def _fisher(
        self, name: str, rows: ArtifactRef, adapter: ModelRef, previous: ArtifactRef | None
    ) -> None:
        """Measure the Fisher information unless the champion brought its own."""
        if name == "fisher" and previous is not None:
            self.line.artifacts[name] = previous
            return
        self.line.run(
            name,
            fisher,
            language=self.language,
            rows=rows,
            adapter=adapter,
            base=self.sources.base,
            base_config=self.config.base,
            settings=fisher_settings(self.config),
            previous=previous,
            execution=self.config.execution,
        )

    def _replay(self) -> None:
        self.line.run(
            "replay",
            replay,
            language=self.language,
            history=self["history"],
            space=self["space"],
            share=self.config.update.replay_share,
            most=self.config.update.max_replay_examples,
            seed=self.config.seed,
        )

    def _buffer(self) -> ArtifactRef | None:
        return self["replay"] if self["replay"].rows else None

    def _corpus_of_lineage(self, role: str) -> Corpus:
        rows = self.lineage.refs[role]
        return self._embedded(f"reference {role}", self.language, rows)

    def _ingest_pool(self, source: Any) -> ArtifactRef:
        return self.line.run(
            f"ingest {source.label}".strip(),
            ingest,
            language="",
            role="pool",
            corpus=source.corpus,
            content=source.content,
            seed=0,
            label=source.label,
        )

    def _ingest(self, name: str, language: str, role: str) -> None:
        self.line.run(
            name,
            ingest,
            language=language,
            role=role,
            corpus=corpus_config(self.config, name),
            content=self.sources.corpora[name],
            seed=self.config.seed,
        )

    def _embedded(self, name: str, language: str, rows: ArtifactRef) -> Corpus:
        vectors = self.line.run(
            f"embed {name}",
            embed,
            language=language,
            rows=rows,
            encoder=self.sources.encoder,
            config=self.config.embedding,
            execution=self.config.execution,
        )
        return Corpus(rows=rows, vectors=vectors)
