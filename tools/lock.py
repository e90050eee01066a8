"""Write `constraints.txt` from the environment this runs in (`python3 run.py lock` calls it).

Versions come from what is installed. Hashes are those of the files pip would download here, which
is why the lock names the platform they hold for; other platforms install by version.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"
HEADER = """\
# The exact versions COMPASS is developed and tested with; `python3 run.py …` installs from it.
# docs/decisions/0005-lock-file.md says why it looks like this. Rewrite it from the environment
# with `python3 run.py lock`, or with the newest versions that pyproject.toml allows with
# `python3 run.py lock --upgrade`; then run `.ci/run`.
"""
NOT_LOCKED = re.compile(r"^(compass-adapt|torchvision|torchaudio|triton|nvidia-.*|cuda-.*)$")
"""Left out: ourselves, and what follows from the kind of torch build a machine gets."""

NOT_HASHED = "torch"


def normal_name(name: str) -> str:
    """Return `name` as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(frozen: str) -> dict[str, str]:
    """Turn the output of `pip freeze` into package → version, without local labels (`+cpu`).

    Raises:
        ValueError: a package that did not come from a package index.
    """
    pins = {}
    for line in frozen.splitlines():
        name, separator, version = line.partition("==")
        if not separator:
            raise ValueError(f"Cannot lock {line!r}: it did not come from a package index.")
        if not NOT_LOCKED.match(normal_name(name)):
            pins[normal_name(name)] = version.partition("+")[0]
    return dict(sorted(pins.items()))


def lock_text(pins: dict[str, str], hashes: dict[str, str], platform_line: str) -> str:
    """Return the lock: one line per package."""
    lines = []
    for name, version in pins.items():
        suffix = "" if name == NOT_HASHED else f" --hash=sha256:{hashes[name]}"
        lines.append(f"{name}=={version}{suffix}\n")
    return f"{HEADER}# hashes: {platform_line}\n" + "".join(lines)


def find_hashes(pins: dict[str, str]) -> dict[str, str]:
    """Ask pip which file it would take for each pin, and return the files' sha256."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        lines = [f"{name}=={version}" for name, version in pins.items() if name != NOT_HASHED]
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet")
        pip("install", *options, "--report", report, "-r", wanted)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        normal_name(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"][
            "sha256"
        ]
        for item in found
    }


def pip(*arguments: str | Path) -> str:
    """Run pip of this environment and return what it prints."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"pip {arguments[0]} failed:\n{answer.stderr}")
    return answer.stdout


def main() -> None:
    """Rewrite the lock."""
    pins = read_pins(pip("freeze", "--all", "--exclude-editable"))
    python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
    machine = f"{sys.platform} {platform.machine()} {platform.libc_ver()[0]}"
    text = lock_text(pins, find_hashes(pins), f"{python} {machine}")
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
