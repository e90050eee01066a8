"""Put the summary that the newest demo run printed into README.md (`make readme` calls it)."""

import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- demo-summary:start -->.*?<!-- demo-summary:end -->", re.DOTALL)


def fill(text: str, summary: str) -> str:
    """Return `text` with `summary` between the two demo-summary marks.

    Raises:
        ValueError: the marks are not there exactly once.
    """
    body = "\n".join(line.rstrip() for line in summary.strip("\n").splitlines())
    block = f"<!-- demo-summary:start -->\n```text\n{body}\n```\n<!-- demo-summary:end -->"
    filled, count = BLOCK.subn(lambda _match: block, text)
    if count != 1:
        raise ValueError(f"README.md holds the demo-summary marks {count} times, not once.")
    return filled


def newest_summary(home: Path) -> Path | None:
    """Return the summary of the newest finished demo run under `home`."""
    found = [path for path in home.glob("runs/*/summary.txt") if is_demo(path.parent)]
    return max(found, key=lambda path: path.parent.name, default=None)


def is_demo(folder: Path) -> bool:
    """Say whether a run is one of the embedded default, over several languages, trained."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        config = (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    selected_only = "dry_run: true" in config
    return record["flow"] == "adapt-languages" and "kind: starter" in config and not selected_only


def main() -> int:
    """Rewrite README.md."""
    home = Path(os.environ.get("COMPASS_HOME", ROOT / ".compass")).resolve()
    summary = newest_summary(home)
    if summary is None:
        print("No demo run yet: `python3 run.py demo` first.", file=sys.stderr)
        return 1
    text = summary.read_text(encoding="utf-8").replace(str(home), ".compass")
    readme = ROOT / "README.md"
    filled = fill(readme.read_text(encoding="utf-8"), text.replace(f"{ROOT}/", ""))
    readme.write_text(filled, encoding="utf-8")
    print(f"README.md: summary of run {summary.parent.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
