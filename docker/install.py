"""Install what COMPASS needs into a virtual environment, from the lock: the image's one long step.

Only the runtime and the chosen extras are installed, not the development tools that the lock names
too: pip is asked which packages those are (within the locked versions), and exactly these lines of
the lock, hashes and all, are installed then. torch comes first and alone, for the reason given in
docs/decisions/0005-lock-file.md. COMPASS itself is not copied: a path file names its folder, so
that a change of the code leaves this step alone.
"""

import argparse
import compileall
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

APP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(APP))

from tools.install import (  # noqa: E402 - lies beside this folder, not on the path
    BEFORE_TORCH,
    hashes_apply,
    read_lock,
    write_lines,
)

CONSOLE_SCRIPT = """\
#!{python}
import sys

from flows.cli import main

sys.exit(main())
"""


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """Return the requirements of the runtime and of `extras`.

    Raises:
        SystemExit: an extra that pyproject.toml does not have.
    """
    optional = project["optional-dependencies"]
    unknown = [name for name in extras if name not in optional]
    if unknown:
        sys.exit(f"No such extras: {unknown}. pyproject.toml has {sorted(optional)}.")
    return [*project["dependencies"], *(line for name in extras for line in optional[name])]


def normal_name(name: str) -> str:
    """Return `name` as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Installer:
    """pip of one virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        self.folder = folder

    def pip(self, *arguments: str | Path, index: str = "") -> None:
        """Run ``pip install``; a failure ends the build with pip's own words."""
        command = [self.python, "-m", "pip", "install", "--no-input", "--no-compile", "--quiet"]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environment |= {"PIP_INDEX_URL": index} if index else {}
        words = [str(word) for word in (*command, *arguments)]
        if subprocess.run(words, env=environment, cwd=APP, check=False).returncode != 0:
            sys.exit(f"pip could not install {arguments[-1]}; its words are above.")

    def needed(self, limits: Path, wanted: list[str]) -> list[str]:
        """Return the names of the packages that `wanted` needs and that are not there yet."""
        report = limits.with_name("report.json")
        self.pip("--dry-run", "--report", report, "-c", limits, *wanted)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
        return sorted(normal_name(item["metadata"]["name"]) for item in found)

    def check_torch(self, kind: str) -> None:
        """Refuse a CPU build where CUDA was asked for; say so where it is the other way round."""
        probe = "import torch; print(torch.version.cuda or '')"
        cuda = subprocess.run(
            [self.python, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.strip()
        if kind == "cuda" and not cuda:
            sys.exit("This torch is a CPU build: TORCH_INDEX must name an index of CUDA builds.")
        if kind == "any" and cuda:
            print(f"This torch is for CUDA {cuda}. A CPU build is gigabytes smaller: TORCH_INDEX.")


def main() -> None:
    """Make the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--torch", choices=("any", "cuda"), required=True)
    parser.add_argument("--extras", required=True, help="of pyproject.toml, separated by commas")
    parser.add_argument("--lock", choices=("hashes", "versions"), required=True)
    parser.add_argument("--torch-index", required=True, help="empty: the configured one")
    options = parser.parse_args()
    extras = [name for name in options.extras.split(",") if name]
    project = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = requirements(project, extras)

    venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(options.venv)
    installer = Installer(options.venv)
    pins = read_lock()
    versions = {name: line.split()[0] for name, line in pins.items()}
    lines = pins if options.lock == "hashes" and hashes_apply() else versions
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = write_lines(folder / "limits.txt", list(versions.values()))
        first = write_lines(folder / "first.txt", [lines[name] for name in BEFORE_TORCH])
        installer.pip("--upgrade", "-r", first)
        installer.pip("-c", limits, versions["torch"], index=options.torch_index)
        installer.check_torch(options.torch)
        names = installer.needed(limits, wanted)
        rest = write_lines(folder / "rest.txt", [lines[name] for name in names if name in lines])
        installer.pip("--no-deps", "-r", rest)
        # Nothing is left to do, unless this platform needs a package that the lock does not name.
        installer.pip("-c", limits, *wanted)
    finish(options.venv)
    print(f"{len(names)} packages, {'hashes checked' if lines is pins else 'by version'}")


def finish(folder: Path) -> None:
    """Put COMPASS on the path and compile everything, because nothing is written later."""
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "compass.pth").write_text(f"{APP}\n", encoding="utf-8")
    script = folder / "bin" / "compass"
    script.write_text(CONSOLE_SCRIPT.format(python=folder / "bin" / "python"), encoding="utf-8")
    script.chmod(0o755)
    compileall.compile_dir(packages, quiet=2, workers=0)


if __name__ == "__main__":
    main()
