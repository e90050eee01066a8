"""Make and repair the virtual environment from the lock. Standard library only."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "compass-stamp"
INSTALL_LOG = VENV / "install.log"
LOCK = ROOT / "constraints.txt"
INSTALL_STEPS_VERSION = 1
"""Raise it when `install` changes what ends up in the environment."""

BEFORE_TORCH = (
    "pip",
    "setuptools",
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "sympy",
    "typing-extensions",
)
"""The installer, and what every build of torch needs: all of it checked against the lock."""

HEARTBEAT_SECONDS = 15
LOG_LINES_SHOWN = 25


class SetupError(Exception):
    """The environment cannot be made; the message says what to change."""


# ------------------------------------------------------------------ the environment
def venv_python() -> Path:
    """Return the interpreter of the virtual environment."""
    return VENV / "bin" / "python"


def environment_digest() -> str:
    """Return what the stamp must name: the lock, what is packaged, this Python and this place."""
    project = read_project()
    parts = [
        INSTALL_STEPS_VERSION,
        f"{sys.version_info.major}.{sys.version_info.minor}",
        str(ROOT),
        LOCK.read_text(encoding="utf-8"),
        [project["build-system"], project["project"], project["tool"]["setuptools"]],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def is_ready() -> bool:
    """Say whether the environment was finished from the current lock."""
    try:
        stamp = STAMP.read_text(encoding="utf-8")
    except OSError:
        return False
    return stamp == environment_digest() and venv_python().exists()


def write_stamp() -> None:
    """Mark the environment as finished; written last, and whole or not at all."""
    draft = STAMP.with_suffix(".tmp")
    draft.write_text(environment_digest(), encoding="utf-8")
    draft.replace(STAMP)


@contextlib.contextmanager
def one_installer() -> Iterator[None]:
    """Let a second `run.py` wait until the first one has finished installing.

    pip inherits the kernel lock, so that it holds until pip is gone even when `run.py` is killed.
    """
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
        os.set_inheritable(handle.fileno(), True)
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
def hashes_apply() -> bool:
    """Say whether the hashes of the lock are those of the files this machine would get."""
    if os.environ.get("COMPASS_LOCK") == "versions":
        return False
    machine = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
    here = f"{machine} {sys.platform} {platform.machine()} {platform.libc_ver()[0]}"
    return f"# hashes: {here}" in LOCK.read_text(encoding="utf-8").splitlines()


def read_lock() -> dict[str, str]:
    """Return package → its line of the lock, with the hash."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0]: line for line in lines if line and not line.startswith("#")}
    missing = [name for name in (*BEFORE_TORCH, "torch") if name not in pins]
    if missing:
        raise SetupError(f"{LOCK.name} has no line for {missing[0]}; restore it from git.")
    return pins


def pip_install(title: str, *arguments: str | Path) -> None:
    """Run `pip install` with a line of progress; its full output goes to the install log."""
    command = [str(venv_python()), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    print(title, flush=True)
    started = time.monotonic()
    with INSTALL_LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=environment,
            close_fds=False,
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
            written = sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info/INSTALLER"))
            return f"{written} packages in place, {text.count(',') + 1} in this step"
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
    elif "THESE PACKAGES DO NOT MATCH THE HASHES" in text:
        advice = (
            "The package index served other files than the locked ones. If that is expected (a "
            "mirror that builds its own), set COMPASS_LOCK=versions and run this again."
        )
    elif "No matching distribution" in text or "Could not find a version" in text:
        advice = (
            "The package index does not offer this version for this Python and platform, or it "
            "cannot be reached: check the network and pip's settings (`pip config list`)."
        )
    shown = "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
    return f"pip could not install what COMPASS needs.\n{shown}\n{advice}"


def install() -> None:
    """Make or repair the environment; does nothing when its stamp is current."""
    if is_ready():
        return
    with one_installer():
        if is_ready():
            return
        started = time.monotonic()
        print(f"[1/5] virtual environment {VENV} (Python {sys.version.split()[0]})", flush=True)
        make_venv()
        STAMP.unlink(missing_ok=True)
        INSTALL_LOG.unlink(missing_ok=True)
        drop_interrupted_packages()
        fill_venv()
        write_stamp()
        print(f"ready after {time.monotonic() - started:.0f} s", flush=True)


def fill_venv() -> None:
    """Install torch, then everything else, then COMPASS itself.

    torch has no hash, because every kind of machine gets another file of it, and pip wants hashes
    for all or nothing: so it has a step of its own, limited by versions alone, and is already
    there when hashes are required. Where the lock holds no hashes for this kind of machine, the
    last step installs everything by version.
    """
    pins = read_lock()
    versions = {name: line.split()[0] for name, line in pins.items()}
    hashed = hashes_apply()
    lines = pins if hashed else versions
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write_lines(folder / "first.txt", [lines[name] for name in BEFORE_TORCH])
        rest = write_lines(folder / "rest.txt", [pins[name] for name in pins if name != "torch"])
        limits = write_lines(folder / "limits.txt", list(versions.values()))
        pip_install("[2/5] installer", "--upgrade", "-r", first)
        pip_install(
            f"[3/5] {versions['torch']} (the largest part)", "-c", limits, versions["torch"]
        )
        if hashed:
            pip_install(f"[4/5] {len(pins) - 1} packages, hashes checked", "-r", rest)
        else:
            print("[4/5] no hashes for this kind of machine: packages are locked by version")
        pip_install("[5/5] COMPASS itself", "-c", limits, "--no-build-isolation", "-e", ".[dev]")


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write a requirements file and return its path."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def upgrade() -> None:
    """Take the newest versions that pyproject.toml allows; torch stays where the lock has it."""
    STAMP.unlink(missing_ok=True)
    torch = read_lock()["torch"]
    options = ("--upgrade", "--upgrade-strategy", "eager", "--no-build-isolation")
    pip_install("newest versions", *options, torch, "-e", ".[dev]")
