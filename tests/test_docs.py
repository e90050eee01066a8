"""The documents name everything a user can meet, and nothing that does not exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from tools import reference

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "configs", "deployments", "docker", "benchmarks")
DOCS = sorted([*ROOT.glob("*.md"), *(path for f in FOLDERS for path in (ROOT / f).rglob("*.md"))])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def flow_names() -> list[str]:
    paths = sorted((ROOT / "flows").glob("*.py"))
    return [
        path.stem
        for path in paths
        if re.search(r"^@flow\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def command_names() -> list[str]:
    """Return every command of the console script, groups as `group command`."""
    typer = pytest.importorskip("typer")
    cli = importlib.import_module("flows.cli")
    return _names(typer.main.get_command(cli.app), "")


def _names(command: object, prefix: str) -> list[str]:
    children: dict[str, object] = getattr(command, "commands", {})
    if not children:
        return [prefix.strip()]
    return [
        name for child, value in children.items() for name in _names(value, f"{prefix} {child}")
    ]


def test_every_document_is_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCS}
    assert {"README.md", "docs/method.md", "docs/decisions/0001-three-layers.md"} <= names


def test_every_flow_is_named_in_the_architecture() -> None:
    assert flow_names()
    architecture = text_of("docs/architecture.md")
    assert [name for name in flow_names() if name not in architecture] == []


def test_every_flow_file_is_named_after_its_flow() -> None:
    for name in flow_names():
        text = text_of(f"flows/{name}.py")
        assert f"def {name}(" in text
        assert f'name="{name.replace("_", "-")}"' in text


def test_every_configuration_is_in_the_table_of_configurations() -> None:
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    assert configs
    table = text_of("configs/README.md")
    missing = [str(p.relative_to(ROOT / "configs")) for p in configs if p.name not in table]
    assert missing == []


def test_every_command_is_described() -> None:
    described = text_of("docs/cli.md")
    names = command_names()
    assert names
    assert [name for name in names if f"compass {name}" not in described] == []


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_generated_page_is_up_to_date(name: str) -> None:
    assert text_of(f"docs/{name}") == reference.PAGES[name](), "run `python3 run.py docs`"


def test_every_command_that_a_document_names_exists() -> None:
    """In code, `compass <word>` is a command; `compass` alone is the program."""
    names = command_names()
    words = {name.split()[0] for name in names}
    mentioned = re.compile(r"(?:`|^ *|/)compass ([a-z][a-z-]+)", re.MULTILINE)
    wrong = [
        f"{path.relative_to(ROOT)}: compass {word}"
        for path in DOCS
        for word in mentioned.findall(path.read_text(encoding="utf-8"))
        if word not in words
    ]
    assert wrong == []


def test_every_command_of_run_py_that_a_document_names_exists() -> None:
    known = set(re.findall(r'add\("([a-z]+)"', text_of("run.py")))
    assert {"demo", "test"} <= known
    for path in [*DOCS, ROOT / "Makefile", ROOT / ".ci" / "run"]:
        named = re.findall(r"run\.py ([a-z]+)", path.read_text(encoding="utf-8"))
        assert set(named) <= known, path.name


def test_every_relative_link_leads_to_a_file() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCS
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if "://" not in target
        and not target.startswith("#")
        and not (path.parent / target.partition("#")[0]).exists()
    ]
    assert broken == []


def test_every_module_and_function_of_the_method_page_exists() -> None:
    """Backticked paths are files; backticked names are defined somewhere in the core."""
    page = text_of("docs/method.md")
    paths = re.findall(r"`((?:compass_core|selection|evaluation)/[\w/]+\.py)`", page)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "compass_core" / path).exists(), path
    core = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "compass_core").rglob("*.py"))
    rows = re.findall(r"^\s*\| \(\d\) \|.*\| (`.*) \|$", page, re.MULTILINE)
    functions = [name for row in rows for name in re.findall(r"`(\w+)`(?! in)", row)]
    assert {"measure_gap", "water_level"} <= set(functions)
    assert [name for name in functions if f"def {name}(" not in core] == []


def test_every_switch_that_the_documents_name_is_in_the_configuration() -> None:
    config = importlib.import_module("compass_core.config").AdaptConfig
    sections = {n: f.annotation for n, f in config.model_fields.items() if n != "data"}
    named = re.findall(
        r"`([a-z]+)\.([a-z_]+)[`:]", "\n".join(p.read_text(encoding="utf-8") for p in DOCS)
    )
    checked = [(s, f) for s, f in named if hasattr(sections.get(s), "model_fields")]
    assert len(checked) > 5
    assert [f"{s}.{f}" for s, f in checked if f not in sections[s].model_fields] == []


def test_every_equation_that_code_cites_is_on_the_method_page() -> None:
    cited: set[str] = set()
    for path in (ROOT / "compass_core").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        cited |= set(re.findall(r"(?:equations?|eq\.) \((\d)\)", text))
    assert cited >= {"1", "3", "4"}
    page = text_of("docs/method.md")
    assert [n for n in sorted(cited) if f"| ({n}) |" not in page] == []


def test_every_decision_is_linked_from_the_architecture() -> None:
    architecture = text_of("docs/architecture.md")
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert records
    assert [r.name for r in records if f"decisions/{r.name}" not in architecture] == []


def test_readme_opens_with_one_sentence_one_picture_one_command_and_four_doors() -> None:
    first = text_of("README.md").split("\n---\n")[0]
    assert first.startswith("# COMPASS\n\n")
    assert first.index("embed ─► cluster") < first.index("python3 run.py demo")
    assert first.index("python3 run.py demo") < first.index("demo-summary:start")
    doors = first[first.index("| I want to…") :]
    assert len(LINK.findall(doors)) == 4


def test_readme_says_what_the_demonstration_is_not() -> None:
    text = text_of("README.md")
    for honest in ("demonstration corpus", "no evidence about Global-MMLU", "not a replication"):
        assert honest in " ".join(text.split()), honest


def test_citation_file_is_valid_yaml_and_names_the_paper() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2604.20720"


def command_options() -> dict[str, set[str]]:
    """Return the options of every command of the console script."""
    typer = pytest.importorskip("typer")
    cli = importlib.import_module("flows.cli")
    commands = typer.main.get_command(cli.app).commands
    return {
        name: {text for parameter in command.params for text in parameter.opts}
        | {text for parameter in command.params for text in parameter.secondary_opts}
        for name, command in commands.items()
    }


def test_every_option_that_the_handbook_gives_a_command_exists() -> None:
    known = command_options()
    pattern = re.compile(r"compass ([a-z][a-z-]+)((?: [^`\n#|;,]+)?)")
    wrong, seen = [], 0
    for command, rest in pattern.findall(text_of("docs/handbook.md")):
        for option in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest):
            seen += 1
            if option not in known.get(command, set()):
                wrong.append(f"compass {command} {option}")
    assert seen > 10
    assert wrong == []


def test_handbook_knows_every_automation_that_is_deployed() -> None:
    automations = yaml.safe_load(text_of("deployments/automations.yaml"))["automations"]
    names = [entry["name"] for entry in automations]
    assert [name for name in names if f"`{name}`" not in text_of("docs/handbook.md")] == []


@pytest.mark.parametrize(
    "line",
    [
        line.partition("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text_of("docs/handbook.md"), re.DOTALL)
        for line in block.splitlines()
        if re.match(r"compass (status|doctor|upgrade --check|rotate-key|metrics)\b", line)
        and "--yes" not in line
    ],
)
def test_command_of_the_handbook_that_changes_nothing_runs(
    line: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typer_testing = pytest.importorskip("typer.testing")
    cli = importlib.import_module("flows.cli")
    arguments = line.replace("/var/lib/node_exporter", str(tmp_path)).split()[1:]
    found = typer_testing.CliRunner().invoke(cli.app, arguments)
    assert found.exit_code in (0, 1), found.output
    assert found.exception is None or isinstance(found.exception, SystemExit), found.output
