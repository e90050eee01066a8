"""The continual study: a first training, then shift after shift, followed in seven ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from compass_core.config import ContinualStudyConfig
from flows.continual_dag import Cell, StreamShared
from flows.engines import check_engine, run_cells
from flows.language_dag import Line, embed_shards, ingest_pool
from flows.outcomes import run_state
from tasks.continual import stream_content
from tasks.continual_report import continual_outcomes, continual_report, publish_continual
from tasks.ingestion import check_sources
from tasks.pools import gather_pool
from tasks.reporting import finish_run, start_run
from tasks.workers import Site, at


@task(name="continual-cell", task_run_name="continual-{language}-{seed}", cache_policy=NO_CACHE)
def continual_cell(
    language: str,
    seed: int,
    config: ContinualStudyConfig,
    shared: StreamShared,
    site: Site | None = None,
) -> dict[str, Any]:
    """Run every arm over one sequence of shifts; nothing is registered."""
    with at(site, language):
        return Cell(language, seed, config, shared).run()


@flow(name="continual-study", flow_run_name="continual-{config.project}")
def continual_study(config: ContinualStudyConfig) -> State[Any]:
    """Compare ways of updating an adapter over shifts of usage; re-running continues."""
    check_engine(config.execution)
    run = start_run("continual-study", config)
    shared = share_stream(config)
    given = {
        (language, seed): {"language": language, "seed": seed, "config": config, "shared": shared}
        for language in config.languages
        for seed in config.seeds
    }
    cells = run_cells(continual_cell, given, config.execution, run.folder)
    report = continual_report(config, cells)
    publish_continual(report)
    outcomes = continual_outcomes(config, cells)
    return run_state(finish_run(run, config, outcomes, continual=report))


def share_stream(config: ContinualStudyConfig) -> StreamShared:
    """Check what all cells need, and read and embed the pool once."""
    sources = check_sources(config, str(Path.cwd()))
    line = Line("")
    shards = embed_shards(line, ingest_pool(line, sources.pool), sources, config)
    pool = line.run("pool", gather_pool, language="", shards=shards)
    return StreamShared(sources, stream_content(), pool)
