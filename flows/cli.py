"""The `compass` command: every flow and every question about a run, in one word each.

Exit codes: 0 done (also when nothing was promoted), 1 a language or the run failed, 2 wrong input,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from compass_core.errors import CompassError, is_wrong_input
from compass_core.files import disk_error
from flows import operating
from flows.interrupting import EXIT_INTERRUPTED, handle_signals, leave_without_server
from tasks.settings import prepare_environment

app = typer.Typer(
    name="compass",
    help=__doc__.split("\n")[0],
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
EXIT_FAILED = 1
EXIT_INPUT = 2

ConfigArgument = Annotated[Path, typer.Argument(help="YAML configuration (see configs/).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted overrides, for example selection.budget=200 languages=sw,tr"),
]
RunOption = Annotated[str, typer.Option("--run", help="Run id; default: the last run.")]
LanguageOption = Annotated[
    str, typer.Option("--language", "-l", help="Target language: sw, swh_Latn, Swahili.")
]


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False,
) -> None:
    if debug:
        os.environ["COMPASS_DEBUG"] = "1"
        os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Adapt six languages on the embedded demonstration corpus: no GPU, no hub, some minutes."""
    from flows.running import run_adapt, shipped_config

    raise typer.Exit(run_adapt(shipped_config("starter.yaml"), overrides or []))


@app.command()
def adapt(
    config: ConfigArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Select only, and estimate steps, time and disk.")
    ] = False,
) -> None:
    """Select data, train an adapter and promote it if it is better, for every language."""
    from flows.running import run_adapt

    extra = ["execution.dry_run=true"] if dry_run else []
    raise typer.Exit(run_adapt(config, [*(overrides or []), *extra]))


@app.command()
def study(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Compare selection strategies at equal budgets over languages and seeds; resumable."""
    from flows.running import run_study

    raise typer.Exit(run_study(config, overrides or []))


@app.command()
def monitor(
    config: ConfigArgument,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at what users asked since the last time: has it drifted from what was trained for?"""
    from flows.monitoring import run_monitor

    raise typer.Exit(run_monitor(config, overrides or [], as_json=as_json))


@app.command()
def update(
    config: ConfigArgument,
    language: LanguageOption,
    overrides: Overrides = None,
    event: Annotated[
        str, typer.Option(help="Drift event to answer; without it: the newest windows.")
    ] = "",
) -> None:
    """Train a champion on for what its users ask now, without losing what it knows."""
    from flows.updating import run_update

    raise typer.Exit(run_update(config, overrides or [], language, event))


@app.command("simulate-usage")
def simulate_usage(
    config: ConfigArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("logs"),
    start: Annotated[str, typer.Option(help="First day; default: so that it ends today.")] = "",
    days: Annotated[int, typer.Option(min=1, help="Days of usage.")] = 5,
    prompts_per_day: Annotated[int, typer.Option(min=1, help="Prompts of a day.")] = 200,
    shift_after: Annotated[int, typer.Option(min=0, help="Days before the mix changes.")] = 3,
    shift: Annotated[
        float, typer.Option(min=0, max=1, help="Share of new topics after the change.")
    ] = 0.9,
) -> None:
    """Make up a usage log of the demonstration corpus, to try `monitor` and `update` with."""
    from flows.updating import write_log

    plan = {"start": start, "days": days, "prompts_per_day": prompts_per_day}
    write_log(config, overrides or [], output, plan | {"shift_after": shift_after, "shift": shift})


@app.command()
def continual(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Compare ways of updating an adapter over shifts of usage; resumable."""
    from flows.running import run_continual

    raise typer.Exit(run_continual(config, overrides or []))


@app.command()
def init(
    usage: Annotated[Path, typer.Option(help="Sample of what users ask.")],
    pool: Annotated[Path, typer.Option(help="Data of other languages.")],
    test: Annotated[Path, typer.Option(help="Test items with gold answers.")],
    languages: Annotated[str, typer.Option(help="Target languages, separated by commas.")],
    coverage: Annotated[Path | None, typer.Option(help="Training data you already have.")] = None,
    encoder: Annotated[str, typer.Option(help="Encoder: folder or hub id.")] = "",
    base: Annotated[str, typer.Option(help="Base model: folder or hub id.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "compass.yaml"
    ),
) -> None:
    """Write a configuration for your own files, after looking at what they contain."""
    from flows.inspecting import write_config

    write_config(
        {"usage": usage, "coverage": coverage, "pool": pool, "test": test},
        languages.split(","),
        encoder,
        base,
        output,
    )


@app.command("fit-encoder")
def fit_encoder(
    parallel: Annotated[Path, typer.Argument(help="Rows with language, text and parallel_id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    text: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    split: Annotated[str, typer.Option(help="Rows whose `split` column says so.")] = "",
    dimension: Annotated[int, typer.Option(min=2, help="Size of the vectors.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Fit a small offline encoder from your own parallel rows (same text in several languages)."""
    from flows.inspecting import fit_encoder_from

    fit_encoder_from(parallel, output, text=text, split=split, dimension=dimension, seed=seed)


@app.command("measure-gains")
def measure_gains(
    config: ConfigArgument,
    output: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")],
    sources: Annotated[
        str, typer.Option(help="Languages of the pool, separated by commas; default: all.")
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows trained on of each source.")] = 300,
) -> None:
    """Train on each source language alone and score every target: what `fit-langrank` learns from.

    One short training per source, one scoring per source and target. An interrupted one goes on.
    """
    from flows.inspecting import measure_gains_of

    measure_gains_of(config, output, sources=sources, n_rows=rows)


@app.command("fit-langrank")
def fit_langrank(
    gains: Annotated[Path, typer.Argument(help="CSV with the columns target, source, gain.")],
    config: Annotated[
        Path, typer.Option(help="Configuration whose data holds these languages' texts.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Train the ranker of `selection.strategy=langrank` from gains you measured yourself."""
    from flows.inspecting import fit_langrank_from

    fit_langrank_from(gains, config, output, seed=seed)


@app.command()
def manifest(
    language: LanguageOption = "",
    run: RunOption = "",
    examples: Annotated[int, typer.Option(min=0, help="Selected examples to list.")] = 10,
    source: Annotated[str, typer.Option(help="Only examples from this source language.")] = "",
    cluster: Annotated[int, typer.Option(help="Only examples of this cluster.")] = -1,
    excluded: Annotated[
        int, typer.Option(min=0, help="Pool rows to list that were not allowed, instead.")
    ] = 0,
) -> None:
    """What was selected, from which languages, and why; or what could not be, and why not."""
    from flows.inspecting import show_excluded, show_manifest

    if excluded:
        show_excluded(language, run, limit=excluded)
        return
    show_manifest(language, run, examples=examples, source=source, cluster=cluster)


@app.command()
def explain(
    language: LanguageOption,
    run: RunOption = "",
    clusters: Annotated[
        int, typer.Option(min=1, help="Clusters to tell about, widest gap first.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Why these examples: the widest gaps, what was missing, what was taken from where."""
    from flows.explaining import explain as explain_language

    explain_language(language, run, clusters=clusters, as_json=as_json)


@app.command()
def scenarios(
    file: Annotated[Path, typer.Argument(help="File of cases, for example scenarios.json.")],
    data: Annotated[str, typer.Option(help="Folder of the data files.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per case and strategy.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--json", help="Write selected ids and checked windows to this file."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Strategy to run; repeat for more.")
    ] = None,
) -> None:
    """Run cases with a planted answer: is what was planted selected, is a drift seen in time?"""
    from flows.scenarios import run_cases

    chosen = strategy or ["compass", "random"]
    run_cases(file, data, seeds=seeds, output=output, strategies=chosen)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    language: LanguageOption,
    alias: Annotated[str, typer.Option(help="champion, challenger, previous or a version.")] = (
        "champion"
    ),
    base: Annotated[str, typer.Option(help="Base model; default: the one it was trained on.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
) -> None:
    """Answer one prompt with the adapter in service."""
    from flows.inspecting import generate_answer

    generate_answer(prompt, language, alias=alias, base=base, max_new_tokens=max_new_tokens)


@app.command()
def rollback(language: LanguageOption) -> None:
    """Put the previous champion of a language back into service."""
    from flows.inspecting import roll_back

    roll_back(language)


@app.command()
def report(run: RunOption = "") -> None:
    """Render a run's report again and say where it is."""
    from flows.inspecting import render_again

    render_again(run)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="Run id.")],
    run_b: Annotated[str, typer.Argument(help="Run id.")],
) -> None:
    """Compare two runs: configuration, selections and results per language."""
    from flows.inspecting import compare_runs

    compare_runs(run_a, run_b)


@app.command()
def clean(
    keep_runs: Annotated[int, typer.Option(min=0, help="Newest runs to keep.")] = 10,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only list.")] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="Also from a shared COMPASS_STORE, where no other home uses it."
        ),
    ] = False,
) -> None:
    """Delete artefacts that neither a kept run nor a champion needs."""
    from flows.inspecting import clean_store

    clean_store(keep_runs=keep_runs, yes=yes, shared=shared)


@app.command()
def deploy(  # noqa: PLR0913, PLR0917 - an option each
    config: ConfigArgument,
    overrides: Overrides = None,
    pool: Annotated[str, typer.Option(help="Work pool; made if it is missing.")] = "compass",
    pool_type: Annotated[
        str, typer.Option("--pool-type", help="process, docker or kubernetes.")
    ] = "process",
    image: Annotated[str, typer.Option(help="Container image of docker and kubernetes.")] = "",
    name: Annotated[
        str, typer.Option(help="Name of the deployments, for a second project on one server.")
    ] = "",
    notify: Annotated[
        str,
        typer.Option(
            envvar="COMPASS_NOTIFY",
            help="Notification block, told of failed runs: slack-webhook/ops; none: nobody.",
        ),
    ] = "",
    timezone: Annotated[
        str, typer.Option(help="Time zone of the retraining's schedule: Europe/Berlin.")
    ] = "",
    schedule: Annotated[
        bool, typer.Option("--schedule/--no-schedule", help="Turn the schedules on.")
    ] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite another project's deployments.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the files; needs no server.")
    ] = False,
) -> None:
    """Put the flows on a Prefect server, with this configuration; safe to repeat."""
    from flows.deploying import Options
    from flows.deploying import deploy as deploy_all

    options = Options(pool, pool_type, image, name, notify, timezone, schedule, replace)
    deploy_all(config, overrides or [], options, check=check)


@app.command()
def forget(
    ids: Annotated[list[str], typer.Argument(help="Ids of records or of training examples.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it only list.")] = False,
) -> None:
    """Remove ids from observations, buffers, manifests and records, and keep them out of training.

    Files of yours are never touched; rows with these ids are passed over when they are read again.
    """
    from flows.forgetting import forget as forget_ids

    forget_ids(ids, yes=yes)


@app.command("rebuild-index")
def rebuild_index() -> None:
    """Rebuild the DuckDB catalogue and the list of runs from the store."""
    from flows.inspecting import rebuild

    rebuild()


@app.command()
def doctor() -> None:
    """Check versions, disk, state folder, Prefect, MLflow and the starter's models."""
    from flows.inspecting import examine

    raise typer.Exit(examine())


operating.register(app)


def main() -> None:
    """Run the command line: one clear message for wrong input, a traceback only with --debug."""
    prepare_environment()
    handle_signals()
    try:
        _call_app()
    except SystemExit as ended:
        leave_without_server(ended.code if isinstance(ended.code, int) else 0)
        raise


def _call_app() -> None:
    debug = "--debug" in sys.argv
    try:
        app()
    except CompassError as error:
        if debug:
            raise
        from flows.terminal import ERR

        ERR.print(f"[bold red]{type(error).__name__}[/]", end=" ")
        ERR.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_INPUT if is_wrong_input(error) else EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        told = disk_error(error, Path.cwd()) if isinstance(error, OSError) else error
        if isinstance(told, CompassError):
            sys.stderr.write(f"{type(told).__name__} {told}\n")
            sys.exit(EXIT_FAILED)
        sys.stderr.write(
            f"E99 unexpected {type(error).__name__}: {error}\nThis is a defect of COMPASS; run the "
            "command with --debug for the traceback.\n"
        )
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
