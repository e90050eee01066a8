#!/usr/bin/env python3
"""Install COMPASS beside this file and run it: `python3 run.py demo`, `python3 run.py test`.

Needs Python 3.11 or newer and nothing else. The first command makes a virtual environment in
`.venv` from the committed lock (`constraints.txt`); later commands start at once and need no
network. A stamp in `.venv` names the lock it was finished from, so a changed lock or a killed
installation is repaired and everything else is left alone.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)

if sys.version_info < OLDEST_PYTHON:
    newer = [
        name
        for name in ("python3.11", "python3.12", "python3.13")
        if shutil.which(name) and not subprocess.call([name, "-c", ""], stderr=subprocess.DEVNULL)
    ]
    sys.exit(
        f"COMPASS needs Python 3.11 or newer; this is {sys.version.split()[0]}. "
        + (f"Use {newer[0]} run.py instead." if newer else "Install one and run this again.")
    )

from tools.install import (  # noqa: E402 - needs the Python that was just checked
    VENV,
    SetupError,
    install,
    is_ready,
    upgrade,
    venv_python,
    write_stamp,
)

CACHES = (
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    ".hypothesis",
    "build",
    "dist",
    "compass_adapt.egg-info",
)
INTERRUPTED = 130


# ------------------------------------------------------------------ running commands
def run(*arguments: str) -> int:
    """Run a module of the environment and return its exit code; Ctrl-C gives 130."""
    process = subprocess.Popen([str(venv_python()), *arguments], cwd=ROOT)
    interrupted = False

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if not in_foreground():  # a terminal has already told the child
            process.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, on_interrupt)
    terminate = signal.signal(signal.SIGTERM, lambda _number, _frame: process.terminate())
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)
    if interrupted:
        return INTERRUPTED
    return code if code >= 0 else 128 - code


def in_foreground() -> bool:
    """Say whether a terminal sends Ctrl-C to this whole process group."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


# ------------------------------------------------------------------ commands
def command_setup(_options: argparse.Namespace) -> int:
    """Make the environment and stop."""
    ready = is_ready()
    install()
    if ready:
        print(f"{VENV} is up to date.")
    return 0


def command_demo(options: argparse.Namespace) -> int:
    """Adapt six languages with the embedded corpus, encoder and model."""
    install()
    return run("-m", "flows.cli", "demo", *options.rest)


def command_test(options: argparse.Namespace) -> int:
    """Run the tests; further arguments go to pytest."""
    install()
    marks: list[str] = []
    if options.slow:
        marks = ["-m", "not nightly and not gpu and not network"]
    if options.only_slow:
        marks = ["-m", "slow and not gpu and not network"]
    if options.nightly:
        marks = ["-m", "nightly and not gpu and not network"]
    return run("-m", "pytest", *marks, *options.rest)


def command_check(_options: argparse.Namespace) -> int:
    """Run the linters, the type checker and the layer contracts; report all that fail."""
    install()
    checks = {
        "ruff check": ("-m", "ruff", "check", "."),
        "ruff format": ("-m", "ruff", "format", "--check", "."),
        "mypy": ("-m", "mypy"),
        "import-linter": (
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
        ),
    }
    failed = []
    for name, arguments in checks.items():
        print(f"--- {name}", flush=True)
        code = run(*arguments)
        if code == INTERRUPTED:
            return code
        if code != 0:
            failed.append(name)
    print(f"check: {'failed: ' + ', '.join(failed) if failed else 'all passed'}", flush=True)
    return 1 if failed else 0


def command_lock(options: argparse.Namespace) -> int:
    """Rewrite the lock from the environment, after an upgrade if asked."""
    install()
    if options.upgrade:
        upgrade()
    code = run("tools/lock.py")
    if code == 0:
        write_stamp()
    return code


def command_readme(_options: argparse.Namespace) -> int:
    """Put the summary of the newest demo run into README.md."""
    install()
    return run("tools/readme.py")


def command_docs(_options: argparse.Namespace) -> int:
    """Write the generated pages of docs/ anew from the code."""
    install()
    return run("-m", "tools.reference")


def command_clean(options: argparse.Namespace) -> int:
    """Delete caches; the environment and the results only when asked."""
    targets = [ROOT / name for name in CACHES]
    targets += [path for path in ROOT.rglob("__pycache__") if VENV not in path.parents]
    if options.venv:
        targets.append(VENV)
    if options.results:
        targets.append(Path(os.environ.get("COMPASS_HOME", ROOT / ".compass")))
    for target in targets:
        if target.exists():
            shutil.rmtree(target)
            print(f"deleted {target}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        allow_abbrev=False,
        description="Install COMPASS beside this file and run it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        summary = (action.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(action=action, rest=[])
        return command

    add("demo", command_demo)
    test = add("test", command_test)
    test.add_argument("--slow", action="store_true", help="the slow guards too")
    test.add_argument("--only-slow", action="store_true", help="the slow guards alone")
    test.add_argument("--nightly", action="store_true", help="the longest guards alone")
    add("check", command_check)
    add("setup", command_setup)
    lock = add("lock", command_lock)
    lock.add_argument("--upgrade", action="store_true", help="take the newest versions first")
    add("readme", command_readme)
    add("docs", command_docs)
    clean = add("clean", command_clean)
    clean.add_argument("--venv", action="store_true", help="the virtual environment too")
    clean.add_argument("--results", action="store_true", help="COMPASS_HOME with all results too")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("demo", "test"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = [argument for argument in rest if argument != "--"]
    try:
        return int(options.action(options))
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; run the command again to go on.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
