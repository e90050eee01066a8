"""Put the summary that the newest demo run printed into README.md (`make readme` calls it)."""

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
    """Return the summary of the newest run under `home`."""
    found = sorted(home.glob("runs/*/summary.txt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def main() -> int:
    """Rewrite README.md, or with `--check` only say whether it would change."""
    summary = newest_summary(Path(os.environ.get("COMPASS_HOME", ROOT / ".compass")))
    if summary is None:
        print("No run yet: `python3 run.py demo` first.", file=sys.stderr)
        return 1
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = fill(before, summary.read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        return int(after != before)
    readme.write_text(after, encoding="utf-8")
    print(f"README.md: summary of run {summary.parent.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
