#!/usr/bin/env python3
"""Install COMPASS beside this file and run it: `python3 run.py demo`, `python3 run.py test`.

Needs Python 3.11 or newer and nothing else. The first command makes a virtual environment in
`.venv` from the committed lock (`constraints.txt`); later commands start at once and need no
network. It costs one idea: a stamp in `.venv` names the lock it was made from, so a changed lock
or a killed installation is repaired and everything else is left alone.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)

if sys.version_info < OLDEST_PYTHON:
    newer = [name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)]
    sys.exit(
        f"COMPASS needs Python 3.11 or newer; this is {sys.version.split()[0]}. "
        + (f"Use {newer[0]} run.py instead." if newer else "Install one and run this again.")
    )

VENV = ROOT / ".venv"
STAMP = VENV / "compass-stamp.json"
INSTALL_LOG = VENV / "install.log"
LOCK = ROOT / "constraints.txt"
INSTALL_STEPS_VERSION = 1
"""Raise it when `install` changes what ends up in the environment."""

DEFAULT_HOME = ".compass"
CACHES = [
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    ".hypothesis",
    "build",
    "dist",
    "compass_adapt.egg-info",
]
NOT_LOCKED = re.compile(r"^(compass-adapt|torchvision|torchaudio|triton|nvidia-.*|cuda-.*)$")
"""Left out of the lock: ourselves, and what follows from the kind of torch wheel a machine gets."""

HEARTBEAT_SECONDS = 15
LOG_LINES_SHOWN = 25
INTERRUPTED = 130


class SetupError(Exception):
    """The environment cannot be made; the message says what to change."""


# ------------------------------------------------------------------ the environment
def venv_python() -> Path:
    """Return the interpreter of the virtual environment."""
    return VENV / "bin" / "python"


def environment_digest() -> str:
    """Return what the stamp must name: the lock, the project file, this Python and this place."""
    parts = [
        str(INSTALL_STEPS_VERSION),
        f"{sys.version_info.major}.{sys.version_info.minor}",
        str(ROOT),
        LOCK.read_text(encoding="utf-8"),
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp() -> dict[str, object]:
    """Return the stamp's content; empty when there is none or it cannot be read."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_ready(*, dev: bool) -> bool:
    """Say whether the environment was finished from the current lock, with the tools if `dev`."""
    stamp = read_stamp()
    return (
        stamp.get("digest") == environment_digest()
        and (bool(stamp.get("dev")) or not dev)
        and venv_python().exists()
    )


def write_stamp(*, dev: bool) -> None:
    """Mark the environment as finished; written last, and whole or not at all."""
    text = json.dumps({"digest": environment_digest(), "dev": dev}, indent=2) + "\n"
    draft = STAMP.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(STAMP)


@contextlib.contextmanager
def one_installer() -> Iterator[None]:
    """Let a second `run.py` wait until the first one has finished installing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with LOCK.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another run.py is installing; waiting for it.", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_venv() -> None:
    """Create `.venv`, or keep the one that is there if it works with this Python."""
    if venv_works():
        return
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"Python {version} here cannot make virtual environments (no module "
            f"'{error.name}'). On Debian and Ubuntu: sudo apt install python{version}-venv"
        ) from error
    try:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(VENV)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"Cannot create {VENV}: {error}") from error


def venv_works() -> bool:
    """Say whether `.venv` holds this Python's version with a working pip."""
    if not venv_python().exists():
        return False
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run(
        [str(venv_python()), "-c", probe], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() == f"{sys.version_info.major}.{sys.version_info.minor}"


def drop_interrupted_packages() -> None:
    """Forget packages that a killed pip left half-copied, so that pip installs them again.

    pip writes `INSTALLER` after all files of a package; a record without it is unfinished, but
    pip itself would count the package as installed.
    """
    for record in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (record / "INSTALLER").exists():
            shutil.rmtree(record)
    for leftover in VENV.glob("lib/python*/site-packages/~*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ------------------------------------------------------------------ pip
def lock_pin(package: str) -> str:
    """Return the line of the lock for `package`, for example `torch==2.13.0`."""
    pins = re.findall(rf"^{re.escape(package)}==\S+", LOCK.read_text(encoding="utf-8"), re.M)
    if not pins:
        raise SetupError(f"{LOCK.name} has no line for {package}; restore it from git.")
    return str(pins[0])


def pip_install(title: str, *arguments: str) -> None:
    """Run `pip install` with a line of progress; its full output goes to the install log."""
    command = [str(venv_python()), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    print(title, flush=True)
    started = time.monotonic()
    with INSTALL_LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=environment,
        )
        lines: list[str] = []
        reader = threading.Thread(target=follow, args=(process, log.write, lines), daemon=True)
        reader.start()
        try:
            show_progress(process, lines, started)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        reader.join()
    if process.returncode != 0:
        raise SetupError(explain_failure(lines))


def follow(
    process: "subprocess.Popen[str]", keep: Callable[[str], object], lines: list[str]
) -> None:
    """Copy the output of `process` to the log and to `lines`."""
    if process.stdout is None:
        return
    for line in process.stdout:
        keep(line)
        lines.append(line.rstrip())


def show_progress(process: "subprocess.Popen[str]", lines: list[str], started: float) -> None:
    """Until `process` ends, say now and then what it is doing and for how long."""
    wait = 1 if sys.stdout.isatty() else HEARTBEAT_SECONDS
    while True:
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            note = f"      {int(time.monotonic() - started):4d} s  {describe(list(lines))}"
            if sys.stdout.isatty():
                print("\r" + note[:100].ljust(100), end="", flush=True)
            else:
                print(note, flush=True)
            continue
        if sys.stdout.isatty():
            print("\r" + " " * 100 + "\r", end="", flush=True)
        return


def describe(lines: list[str]) -> str:
    """Say in a few words where pip is."""
    collected = sum(line.lstrip().startswith("Collecting ") for line in lines)
    for line in reversed(lines):
        text = line.strip()
        if text.startswith("Installing collected packages"):
            return f"writing {text.count(',') + 1} packages"
        if text.startswith(("Downloading ", "Collecting ")):
            name = text.split()[1].rsplit("/", 1)[-1]
            return f"{collected} packages looked up, at {name}"
    return "asking the package index"


def explain_failure(lines: list[str]) -> str:
    """Return the end of pip's output with advice."""
    text = "\n".join(lines)
    advice = (
        f"The full output is in {INSTALL_LOG.relative_to(ROOT)}; run the command again to go on."
    )
    if "No space left" in text:
        advice = "The disk is full: about 2 GB are needed (8 GB with a CUDA build of torch)."
    elif "No matching distribution" in text or "Could not find a version" in text:
        advice = (
            "The package index does not offer this version for this Python and platform, or it "
            "cannot be reached: check the network and pip's settings (`pip config list`)."
        )
    shown = "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
    return f"pip could not install what COMPASS needs.\n{shown}\n{advice}"


def install(*, dev: bool) -> None:
    """Make or repair the environment; does nothing when its stamp is current."""
    if is_ready(dev=dev):
        return
    with one_installer():
        if is_ready(dev=dev):
            return
        dev = dev or bool(read_stamp().get("dev"))
        started = time.monotonic()
        version = sys.version.split()[0]
        print(f"[1/4] Virtual environment in {VENV} (Python {version})", flush=True)
        make_venv()
        STAMP.unlink(missing_ok=True)
        INSTALL_LOG.unlink(missing_ok=True)
        drop_interrupted_packages()
        limits = ("-c", str(LOCK))
        torch = lock_pin("torch")
        pip_install(
            "[2/4] Installer", *limits, "--upgrade", lock_pin("pip"), lock_pin("setuptools")
        )
        pip_install(f"[3/4] {torch} (the largest part; some minutes)", *limits, torch)
        extras = ".[dev]" if dev else "."
        pip_install(
            "[4/4] Everything else" + (", with the development tools" if dev else ""),
            *limits,
            "--no-build-isolation",
            "-e",
            extras,
        )
        write_stamp(dev=dev)
        print(f"Ready after {time.monotonic() - started:.0f} s.", flush=True)


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
def command_setup(options: argparse.Namespace) -> int:
    """Make the environment and stop."""
    ready = is_ready(dev=options.dev)
    install(dev=options.dev)
    if ready:
        print(f"{VENV} is up to date.")
    return 0


def command_demo(options: argparse.Namespace) -> int:
    """Adapt six languages with the embedded corpus, encoder and model."""
    install(dev=False)
    return run("-m", "flows.cli", "demo", *options.rest)


def command_test(options: argparse.Namespace) -> int:
    """Run the tests; further arguments go to pytest."""
    install(dev=True)
    marks: list[str] = []
    if options.slow:
        marks = ["-m", "not gpu and not network"]
    if options.only_slow:
        marks = ["-m", "slow and not gpu and not network"]
    return run("-m", "pytest", *marks, *options.rest)


def command_check(_options: argparse.Namespace) -> int:
    """Run the linters, the type checker and the layer contracts; report all that fail."""
    install(dev=True)
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
    install(dev=True)
    if options.upgrade:
        with tempfile.TemporaryDirectory() as folder:
            limits = Path(folder) / "torch.txt"
            limits.write_text(lock_pin("torch") + "\n", encoding="utf-8")
            newest = ("--upgrade", "--upgrade-strategy", "eager", "-c", str(limits))
            STAMP.unlink(missing_ok=True)
            pip_install("Newest versions that pyproject.toml allows", *newest, "-e", ".[dev]")
    frozen = subprocess.run(
        [str(venv_python()), "-m", "pip", "freeze", "--all", "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    )
    pins = lock_lines(frozen.stdout.splitlines())
    header = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    LOCK.write_text("\n".join([*header, *pins]) + "\n", encoding="utf-8")
    write_stamp(dev=True)
    print(f"{LOCK.name}: {len(pins)} packages")
    return 0


def lock_lines(frozen: list[str]) -> list[str]:
    """Turn the output of `pip freeze` into lines of the lock, sorted, without local labels."""
    pins = []
    for line in frozen:
        name, separator, version = line.partition("==")
        if not separator:
            raise SetupError(f"Cannot lock {line!r}: it was not installed from a package index.")
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if not NOT_LOCKED.match(normal):
            pins.append(f"{normal}=={version.partition('+')[0]}")
    return sorted(pins)


def command_readme(_options: argparse.Namespace) -> int:
    """Put the summary of the newest demo run into README.md."""
    home = Path(os.environ.get("COMPASS_HOME", ROOT / DEFAULT_HOME))
    summaries = sorted(home.glob("runs/*/summary.txt"), key=lambda path: path.stat().st_mtime)
    if not summaries:
        print("No run yet: `python3 run.py demo` first.", file=sys.stderr)
        return 1
    readme = ROOT / "README.md"
    summary = summaries[-1].read_text(encoding="utf-8")
    text = fill_readme(readme.read_text(encoding="utf-8"), summary)
    readme.write_text(text, encoding="utf-8")
    print(f"README.md: summary of {summaries[-1].parent.name}")
    return 0


def fill_readme(text: str, summary: str) -> str:
    """Return `text` with `summary` between the two demo-summary marks."""
    block = (
        f"<!-- demo-summary:start -->\n```text\n{summary.strip()}\n```\n<!-- demo-summary:end -->"
    )
    pattern = re.compile(r"<!-- demo-summary:start -->.*?<!-- demo-summary:end -->", re.S)
    filled, count = pattern.subn(lambda _match: block, text)
    if count != 1:
        raise SetupError("README.md needs the demo-summary:start and :end marks exactly once.")
    return filled


def command_clean(options: argparse.Namespace) -> int:
    """Delete caches; the environment and the results only when asked."""
    targets = [ROOT / name for name in CACHES]
    targets += [path for path in ROOT.rglob("__pycache__") if VENV not in path.parents]
    if options.venv:
        targets.append(VENV)
    if options.results:
        targets.append(Path(os.environ.get("COMPASS_HOME", ROOT / DEFAULT_HOME)))
    for target in targets:
        if target.exists():
            shutil.rmtree(target)
            print(f"deleted {target}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="Install COMPASS beside this file and run it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        summary = (action.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(action=action, rest=[])
        return command

    add("demo", command_demo)
    test = add("test", command_test)
    test.add_argument("--slow", action="store_true", help="the slow guards too")
    test.add_argument("--only-slow", action="store_true", help="the slow guards alone")
    add("check", command_check)
    setup = add("setup", command_setup)
    setup.add_argument("--dev", action="store_true", help="with the development tools")
    lock = add("lock", command_lock)
    lock.add_argument("--upgrade", action="store_true", help="take the newest versions first")
    add("readme", command_readme)
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
