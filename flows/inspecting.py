"""Answers of the command line about what is there: selections, runs, models, the machine."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from compass_core.errors import DataError, InputError, TransientError
from compass_core.languages import canonical_language, language_name
from flows.terminal import OUT
from tasks.settings import compass_home, runs_folder, tracking_uri, without_password

_MAX_CLUSTERS = 12
_MAX_TEXT = 60
_MIN_FREE_BYTES = 2 * 2**30


# ------------------------------------------------------------------ selections and runs
def show_manifest(language: str, run: str, *, examples: int, source: str, cluster: int) -> None:
    """Print what was selected for one language: from where, for which clusters, and why."""
    from tasks.manifests import catalog, languages_of

    if not language:
        found = languages_of(run or "last")
        if len(found) != 1:
            names = ", ".join(found) or "none yet: run `compass adapt` first"
            raise DataError(f"Name a language with -l. Languages with a selection: {names}.")
        language = found[0]
    code, run_id = canonical_language(language), run or "last"
    index = catalog()
    summary = index.selection_summary(code, run_id)
    OUT.print(
        f"{language_name(code)} ({code}), run {summary['run_id']}: {summary['n_examples']} "
        f"examples selected by {summary['strategy']} of a budget of {summary['budget']}, "
        f"from {summary['n_clusters']} clusters, {summary['n_gap_clusters']} with a gap.",
        markup=False,
    )
    print_table(
        ("from", "examples", "share", "clusters"),
        [
            (
                language_name(row["source_language"]),
                row["n_examples"],
                f"{row['share']:.1%}",
                row["n_clusters"],
            )
            for row in index.by_source_language(code, run_id).to_pylist()
        ],
    )
    print_table(
        ("cluster", "what it is about", "usage", "coverage", "gap", "taken", "of", "mostly from"),
        [
            (
                row["cluster"],
                _short(row["label"]),
                f"{row['usage_share']:.1%}",
                f"{row['coverage_share']:.1%}",
                f"{100 * row['gap']:.1f}",
                row["selected"],
                row["capacity"],
                row["sources"],
            )
            for row in index.by_cluster(code, run_id).to_pylist()[:_MAX_CLUSTERS]
        ],
    )
    listed = index.examples(
        code,
        run_id,
        examples,
        source_language=canonical_language(source) if source else None,
        cluster=cluster if cluster >= 0 else None,
    )
    print_table(
        ("id", "from", "text", "why"),
        [
            (
                row["id"],
                row["source_language"],
                _short(row["prompt"] or row["response"]),
                row["reason"],
            )
            for row in listed.to_pylist()
        ],
    )


def show_excluded(language: str, run: str, *, limit: int) -> None:
    """Print pool rows that could not be selected, why, and what they collide with."""
    from tasks.explaining import excluded_rows

    n_rows, rows = excluded_rows(canonical_language(language), run or "last", limit)
    OUT.print(f"{n_rows} pool rows were not allowed.", markup=False)
    print_table(
        ("id", "why", "collides with"),
        [(row["id"], row["reason"], row["other_id"]) for row in rows],
    )


def render_again(run: str) -> None:
    """Render a run's page from its data, and the page of usage; print where they are."""
    from tasks.manifests import render_report_again

    path = render_report_again(_run_id(run))
    OUT.print(path.as_uri(), markup=False, soft_wrap=True)
    if (compass_home() / "usage").is_dir():
        from tasks.dashboard import write_dashboard

        OUT.print(write_dashboard().as_uri(), markup=False, soft_wrap=True)


def compare_runs(run_a: str, run_b: str) -> None:
    """Print how two runs differ: settings, selections and accuracies."""
    from tasks.manifests import differences

    found = differences(_run_id(run_a), _run_id(run_b))
    print_table(("setting", run_a, run_b), found["settings"], empty="The settings are equal.")
    print_table(
        ("language", "selected by both", f"only {run_a}", f"only {run_b}", "accuracy", "change"),
        found["languages"],
        empty="No language is in both runs.",
    )


def clean_store(*, keep_runs: int, yes: bool, shared: bool = False) -> None:
    """List what can be deleted, and delete it if asked to."""
    from tasks.dashboard import write_index
    from tasks.manifests import catalog
    from tasks.retention import apply_clean, plan_clean

    plan = plan_clean(keep_runs, shared=shared)
    size = f"{plan.bytes / 2**20:.1f} MiB"
    OUT.print(f"{len(plan.runs)} runs and {len(plan.artefacts)} artefacts, {size}")
    if plan.note:
        OUT.print(plan.note)
    if plan.is_empty():
        return
    if not yes:
        OUT.print("Nothing was deleted. Add --yes to delete them.")
        return
    apply_clean(plan)
    catalog().rebuild()
    write_index()
    OUT.print("Deleted.")


def rebuild() -> None:
    """Rebuild catalogue and index page from the store."""
    from tasks.dashboard import write_index
    from tasks.manifests import catalog

    found = catalog().rebuild()
    write_index(rebuild=True)
    OUT.print(f"{found.n_artifacts} artefacts and {found.n_runs} runs indexed")


# ------------------------------------------------------------------ models
def roll_back(language: str) -> None:
    """Put the previous champion back and say which it is."""
    from tasks.serving import roll_back_language

    code = canonical_language(language)
    for name, champion in roll_back_language(code):
        serves = f"version {champion}" if champion else "the base alone"
        OUT.print(f"{name}: {serves} serves now.", markup=False)


def generate_answer(
    prompt: str, language: str, *, alias: str, base: str, max_new_tokens: int
) -> None:
    """Print the answer of a registered adapter."""
    from tasks.serving import generate

    answer = generate(
        prompt,
        canonical_language(language),
        alias=alias,
        base=base,
        max_new_tokens=max_new_tokens,
    )
    OUT.print(answer, markup=False, highlight=False)


def fit_encoder_from(
    parallel: Path, output: Path, *, text: str, split: str, dimension: int, seed: int
) -> None:
    """Fit an encoder on a file of parallel rows and say what it was fitted on."""
    from tasks.encoders import fit_from_file

    facts = fit_from_file(parallel, output, text=text, split=split, dimension=dimension, seed=seed)
    OUT.print(
        f"Fitted on {facts['n_rows']} parallel rows in {facts['n_languages']} languages: {output}",
        markup=False,
    )


def measure_gains_of(config: Path, output: Path, *, sources: str, n_rows: int) -> None:
    """Measure gains between the languages of a configuration and say what to do with them."""
    from tasks.rankers import measure_from_config

    wanted = [name.strip() for name in sources.split(",") if name.strip()]
    count = measure_from_config(config, output, sources=wanted, n_rows=n_rows)
    OUT.print(
        f"{count} gains: {output}. Next: compass fit-langrank {output} --config {config} "
        "--out ranker",
        markup=False,
    )


def fit_langrank_from(gains: Path, config: Path, output: Path, *, seed: int) -> None:
    """Train a ranker of source languages and say how well it ranks languages it did not see."""
    from tasks.rankers import fit_from_gains

    facts = fit_from_gains(gains, config, output, seed=seed)
    quality = facts["ndcg_at_3"]
    rows = []
    for name, mean in sorted(quality["mean"].items(), key=lambda item: -item[1]):
        lead = quality["lead"].get(name)
        shown = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*lead) if lead else ""
        rows.append((name, f"{mean:.3f}", shown))
    print_table(("order of the sources", "NDCG@3, target left out", "langrank's lead, 95 %"), rows)
    OUT.print(
        f"Trained on {facts['n_pairs']} gains of {facts['n_targets']} targets: {output}. "
        f"Use it with selection.strategy=langrank selection.langrank_model={output}",
        markup=False,
    )


def write_config(
    paths: Mapping[str, Path | None],
    languages: Sequence[str],
    encoder: str,
    base: str,
    output: Path,
) -> None:
    """Write a configuration for the user's own files."""
    from compass_core.scaffold import make_config
    from compass_core.storage import write_text

    if output.exists():
        raise InputError(f"{output} exists. Give another name with -o, or remove it.", code="E44")
    text = make_config(paths, languages, encoder=encoder, base=base, folder=output.parent)
    write_text(output, text)
    OUT.print(f"{output} written. Next: compass adapt {output} --dry-run", markup=False)


# ------------------------------------------------------------------ the machine
def examine() -> int:
    """Print what a run needs and whether it is there; return the exit code."""
    from tasks.checks import environment_checks
    from tasks.migrations import pending

    home = compass_home()
    packages = ("torch", "transformers", "peft", "prefect", "mlflow", "duckdb")
    rows = [("python", platform.python_version(), "ok" if sys.version_info >= (3, 11) else "old")]
    rows += [(name, version(name), "ok") for name in packages]
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    rows.append(("disk", f"{free / 2**30:.1f} GiB free", "ok" if free > _MIN_FREE_BYTES else "low"))
    rows.append(("state", str(home), "ok"))
    rows.append(("MLflow", without_password(tracking_uri()), "ok"))
    rows += environment_checks()
    try:
        waiting = ", ".join(f"{part.name} {part.found} to {part.wanted}" for part in pending())
        verdict = "compass upgrade" if waiting else "ok"
    except TransientError as error:
        waiting, verdict = "unknown", str(error)
    rows.append(("release of the files", waiting or "this one", verdict))
    print_table(("what", "found", "verdict"), rows)
    return 0 if all(row[2] == "ok" for row in rows) else 1


def _run_id(run: str) -> str:
    from tasks.reporting import last_run_id

    found = last_run_id() if run in ("", "last") else run
    if found is None:
        raise DataError("There is no run yet. Run `compass adapt` first.", code="E01")
    if not (runs_folder() / found / "run.json").is_file():
        known = sorted(path.parent.name for path in runs_folder().glob("*/run.json"))[-5:]
        raise DataError(
            f"There is no run {found!r}. The newest are: {', '.join(known) or 'none'}.", code="E01"
        )
    return found


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "") -> None:
    """Print a table; what is printed is never taken for markup."""
    if not rows:
        if empty:
            OUT.print(empty)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(header):
        numbers = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    OUT.print(table, markup=False)


def _cell(value: Any) -> str:
    from rich.markup import escape

    return escape("" if value is None else str(value))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"
