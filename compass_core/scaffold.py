"""`compass init`: look at a person's files, then write a configuration that loads.

What was found is written down as comments, so that a wrong guess is easy to see and to change. One
file may serve several roles: by its splits where it has them, else by a stable hash of its rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from compass_core.config import ColumnMapping, CorpusConfig
from compass_core.errors import DataError, InputError, LanguageError, bounded_list
from compass_core.languages import canonical_language, language_name
from compass_core.reading.mapping import Fields, Role, find_fields
from compass_core.reading.opening import open_source
from compass_core.reading.sources import find_source
from compass_core.strict_yaml import dump_yaml

ROLES: Final[tuple[Role, ...]] = ("usage", "coverage", "pool", "test")
DEFAULT_ENCODER: Final = "intfloat/multilingual-e5-small"
DEFAULT_BASE: Final = "Qwen/Qwen2.5-0.5B-Instruct"

_LABEL_COLUMNS: Final = ("label", "topic", "category", "subject", "intent", "domain")
_MAX_LABELS: Final = 30
_SPLITS: Final[dict[Role, tuple[str, ...]]] = {
    "usage": ("dev", "validation", "valid", "val"),
    "coverage": ("train", "training"),
    "pool": ("train", "training"),
    "test": ("test", "eval", "evaluation"),
}
_HASHED: Final[dict[Role, str]] = {
    "coverage": "0-70", "pool": "0-70", "usage": "70-80", "test": "80-100",
}  # fmt: skip
_GRID: Final = (10, 20, 40, 60, 80, 100, 120)
_POINTS_PER_CLUSTER: Final = 8
_MAX_BUDGET: Final = 2_000
_COMMENTS: Final[dict[str, str]] = {
    "usage": "What users ask (prompts only). It shapes the selection and is never trained on.",
    "coverage": "Training data the target languages already have.",
    "pool": "Data of other languages to select from.",
    "test": "Test items with right answers; read for scoring only.",
}


@dataclass(frozen=True)
class CorpusReport:
    """What was found in one corpus.

    Attributes:
        path: As it was given.
        name: File or folder name.
        format: How it is read.
        columns: Column names.
        mapping: Field → column, as detected.
        languages: Rows by canonical language; unknown values under their own text.
        splits: Rows by value of a `split` column.
        labels: Label column → its values, where a column has few values.
        rows: All rows.
        suggested_role: What the corpus looks like.
    """

    path: Path
    name: str
    format: str
    columns: tuple[str, ...]
    mapping: dict[str, str]
    languages: dict[str, int]
    splits: dict[str, int]
    labels: dict[str, tuple[str, ...]]
    rows: int
    suggested_role: Role
    by_split: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def rows_in(self, language: str, split: str = "") -> int:
        """Return the rows of a language, of one split or of all."""
        if not split:
            return self.languages.get(language, 0)
        return self.by_split.get((language, split), 0)


def inspect_corpus(path: Path, *, base_folder: Path | None = None) -> CorpusReport:
    """Look at every row of a corpus once and say what it seems to be.

    Raises:
        DataError: it cannot be found or read.
    """
    config = CorpusConfig(path=str(path))
    source = find_source(config, base_folder or Path.cwd())
    raw = open_source(source, [])
    fields, role = _best_fields(config, raw.columns, source.name)
    by_name = {column.lower(): column for column in raw.columns}
    split = by_name.get("split", "")
    label_columns = [by_name[name] for name in _LABEL_COLUMNS if name in by_name]
    used = [fields.language, split, *label_columns]
    counts: Counter[tuple[str, str]] = Counter()
    labels: dict[str, dict[str, None]] = {column: {} for column in label_columns}
    codes: dict[Any, str] = {}
    for _, _, row in raw.rows(tuple(dict.fromkeys(c for c in used if c)) or (raw.columns[0],)):
        value = str(row.get(fields.language, "")) if fields.language else ""
        if value not in codes:
            codes[value] = _canonical_or_raw(value)
        counts[codes[value], str(row.get(split, "")) if split else ""] += 1
        for column, seen in labels.items():
            if isinstance(row.get(column), str) and len(seen) <= _MAX_LABELS:
                seen[row[column]] = None
    raw.problems.raise_if_any()
    return CorpusReport(
        path=path,
        name=source.name,
        format="hub" if source.hub else source.files[0].format,
        columns=tuple(raw.columns),
        mapping=fields.as_mapping(),
        languages=_totals(counts, 0),
        splits=_totals(counts, 1) if split else {},
        labels={c: tuple(v) for c, v in labels.items() if 2 <= len(v) <= _MAX_LABELS},
        rows=counts.total(),
        suggested_role=role,
        by_split=dict(counts),
    )


def make_config(
    paths: Mapping[str, Path | None],
    languages: Sequence[str],
    *,
    encoder: str = "",
    base: str = "",
    folder: Path | None = None,
) -> str:
    """Return a commented configuration for a person's own files.

    Args:
        paths: File of each role (usage, coverage, pool, test); coverage may be None.
        languages: Target languages, in any form.
        encoder: Encoder folder or hub id; default a small hub encoder.
        base: Base model folder or hub id; default a small hub model.
        folder: Folder the configuration will be written to; paths become relative to it.

    Raises:
        InputError: everything that is missing, at once: a role without a file, a language without
            rows, columns that cannot be mapped.
    """
    folder = (folder or Path.cwd()).resolve()
    targets = [canonical_language(name.strip()) for name in languages if name.strip()]
    if not targets:
        raise InputError("no target language given - name at least one, for example sw", code="E43")
    missing = [role for role in ("usage", "pool", "test") if not paths.get(role)]
    if missing:
        raise InputError(
            f"no file for {', '.join(missing)} - give {' '.join(f'--{m} FILE' for m in missing)}",
            code="E01",
        )
    given: dict[Role, Path] = {role: path for role in ROLES if (path := paths.get(role))}
    reports = {path: inspect_corpus(path) for path in dict.fromkeys(given.values())}
    problems: list[str] = []
    corpora: dict[Role, dict[str, Any]] = {}
    for role, path in given.items():
        try:
            corpora[role] = _corpus(role, given, reports, folder)
        except InputError as error:
            problems.append(f"--{role} {path}: {error}")
            continue
        problems += _language_problems(role, reports[path], corpora[role], targets)
    if problems:
        raise DataError(
            f"no configuration can be written yet:\n{bounded_list(problems)}", code="E15"
        )
    return _render(corpora, given, reports, targets, _model(encoder, folder), _model(base, folder))


# --------------------------------------------------------------------------- looking
def _best_fields(config: CorpusConfig, columns: list[str], name: str) -> tuple[Fields, Role]:
    """Map the columns for the most demanding role they satisfy."""
    order: tuple[Role, ...] = ("test", "pool", "usage")
    last: DataError | None = None
    for role in order:
        try:
            fields = find_fields(config, role, columns, name)
        except DataError as error:
            last = error
            continue
        if role == "test" and not fields.choices:
            continue
        return fields, role
    assert last is not None
    raise last


def _canonical_or_raw(value: str) -> str:
    try:
        return canonical_language(value)
    except LanguageError:
        return value


def _totals(counts: Counter[tuple[str, str]], position: int) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for key, count in counts.items():
        totals[key[position]] += count
    return dict(totals.most_common())


# --------------------------------------------------------------------------- one corpus
def _corpus(
    role: Role, given: Mapping[Role, Path], reports: Mapping[Path, CorpusReport], folder: Path
) -> dict[str, Any]:
    """Return the settings of one corpus, or refuse with what its columns lack."""
    path = given[role]
    report = reports[path]
    values: dict[str, Any] = {"path": _relative(path, folder)}
    values |= _part(role, given, report)
    values |= _label_task(role, given, reports)
    mapping = {} if "label_choices" not in values else {"answer": values.pop("_answer")}
    trial = {k: v for k, v in values.items() if k not in ("path", "split", "hash_split")}
    config = CorpusConfig(path=str(path), columns=ColumnMapping(**mapping), **trial)
    fields = find_fields(config, role, report.columns, report.name)
    if not fields.language:
        if len(report.languages) > 1 or not given:
            raise DataError("which column holds the language is unclear", code="E15")
        raise DataError(
            f"{report.name} has no language column - add one (`language`), or write the "
            "configuration by hand with `language:` under this corpus",
            code="E15",
        )
    detected = fields.as_mapping()
    wanted = ("language", "prompt", "response", "messages", "text", "choices", "answer", "topic")
    values["columns"] = {name: detected[name] for name in wanted if name in detected}
    return values


def _part(role: Role, given: Mapping[Role, Path], report: CorpusReport) -> dict[str, Any]:
    """Choose the rows of a file that several roles share: by split, else by hash."""
    found = next((s for s in _SPLITS[role] if s in report.splits), "")
    if found:
        return {"split": found}
    users = {other for other, path in given.items() if path == report.path}
    if len(users - {"coverage"}) > 1 or users == {"coverage", "test"}:
        return {"hash_split": _HASHED[role]}
    return {}


def _label_task(
    role: Role, given: Mapping[Role, Path], reports: Mapping[Path, CorpusReport]
) -> dict[str, Any]:
    """Make a labelling task of text with few labels, when the test set has no other answer."""
    test = reports[given["test"]]
    if {"response", "messages"} & set(test.mapping) or "answer" in test.mapping or not test.labels:
        return {}
    column, labels = next(iter(test.labels.items()))
    text = test.mapping.get("prompt") or test.mapping.get("text", "")
    if not text or not {text, column} <= set(reports[given[role]].columns):
        return {}
    return {
        "prompt_template": f"{{{text}}}\n<{column}?> =",
        "label_choices": sorted(labels),
        "_answer": column,
    }


def _language_problems(
    role: Role, report: CorpusReport, values: Mapping[str, Any], targets: Sequence[str]
) -> list[str]:
    split = values.get("split", "")
    found = ", ".join(f"{code} {n}" for code, n in list(report.languages.items())[:8])
    if role == "pool":
        others = [code for code in report.languages if code not in targets]
        return [] if others else [f"--pool {report.path}: E51 only {found}; add other languages"]
    if role == "coverage":
        return []
    return [
        f"--{role} {report.path}: E51 no rows in {language_name(code)} ({code}); found {found}"
        for code in targets
        if not report.rows_in(code, split)
    ]


# --------------------------------------------------------------------------- writing
def _relative(path: Path, folder: Path) -> str:
    if not path.exists():
        return str(path)
    return os.path.relpath(path.resolve(), folder)


def _model(name: str, folder: Path) -> str:
    if name and name != "starter" and Path(name).expanduser().exists():
        relative = os.path.relpath(Path(name).expanduser().resolve(), folder)
        return relative if relative.startswith(".") else f"./{relative}"
    return name


def _render(
    corpora: Mapping[Role, dict[str, Any]],
    given: Mapping[Role, Path],
    reports: Mapping[Path, CorpusReport],
    targets: Sequence[str],
    encoder: str,
    base: str,
) -> str:
    encoder, base = encoder or DEFAULT_ENCODER, base or DEFAULT_BASE
    lines = [
        "# Written by `compass init`. Run it with",
        "#   compass adapt THIS_FILE --dry-run     (selection only: what, why, how long)",
        "#   compass adapt THIS_FILE",
        "# Relative paths start from this file's folder.",
        "",
        f"# {', '.join(language_name(code) for code in targets)}",
        dump_yaml({"languages": list(targets)}).rstrip(),
        "",
        "data:",
        "  kind: files",
    ]
    for role, values in corpora.items():
        lines += [f"  # {_COMMENTS[role]}", *_found(reports[given[role]]), f"  {role}:"]
        lines += [f"    {line}" for line in dump_yaml(values).rstrip().split("\n")]
    prefix = "query: " if "e5" in encoder.lower() else ""
    lines += [
        "",
        "# The encoder decides what counts as similar. Without a hub: `compass fit-encoder`.",
        dump_yaml({"embedding": {"encoder": encoder, "prefix": prefix}}).rstrip(),
        "",
        "# More clusters match the usage more closely; a small usage sample bears fewer.",
        dump_yaml({"clustering": {"n_clusters": _grid(corpora, given, reports, targets)}}).rstrip(),
        "",
        "# Examples to add from the pool; try several.",
        dump_yaml({"selection": {"budget": _budget(corpora, given, reports, targets)}}).rstrip(),
        "",
        "# The frozen model: a folder with safetensors weights, or a hub id.",
        dump_yaml({"base": {"model": base}}).rstrip(),
        "",
        "# Trained beside the selection, for comparison; costs one training each.",
        dump_yaml({"baselines": ["target-only", "random"]}).rstrip(),
    ]
    return "\n".join(lines) + "\n"


def _found(report: CorpusReport) -> list[str]:
    shown = ", ".join(f"{code} {count}" for code, count in list(report.languages.items())[:6])
    more = f" and {len(report.languages) - 6} more" if len(report.languages) > 6 else ""
    splits = ", ".join(f"{name} {count}" for name, count in report.splits.items())
    lines = [f"  # Found: {report.rows} rows of {report.format}; {shown}{more}"]
    return lines + ([f"  # Splits: {splits}"] if splits else [])


def _rows(
    role: Role,
    corpora: Mapping[Role, dict[str, Any]],
    given: Mapping[Role, Path],
    reports: Mapping[Path, CorpusReport],
    languages: Sequence[str],
) -> list[int]:
    """Return how many rows a role has in each of `languages`, roughly where hashed."""
    if role not in corpora:
        return [0 for _ in languages]
    values, report = corpora[role], reports[given[role]]
    counts = [report.rows_in(code, values.get("split", "")) for code in languages]
    if "hash_split" in values:
        low, high = (int(part) for part in values["hash_split"].split("-"))
        counts = [count * (high - low) // 100 for count in counts]
    return counts


def _grid(
    corpora: Mapping[Role, dict[str, Any]],
    given: Mapping[Role, Path],
    reports: Mapping[Path, CorpusReport],
    targets: Sequence[str],
) -> list[int]:
    usage = _rows("usage", corpora, given, reports, targets)
    coverage = _rows("coverage", corpora, given, reports, targets)
    points = min(u + c for u, c in zip(usage, coverage, strict=True))
    grid = [k for k in _GRID if k * _POINTS_PER_CLUSTER <= points]
    return grid or [max(2, points // _POINTS_PER_CLUSTER)]


def _budget(
    corpora: Mapping[Role, dict[str, Any]],
    given: Mapping[Role, Path],
    reports: Mapping[Path, CorpusReport],
    targets: Sequence[str],
) -> int:
    others = [code for code in reports[given["pool"]].languages if code not in targets]
    available = sum(_rows("pool", corpora, given, reports, others))
    return max(1, min(_MAX_BUDGET, available // 5))
