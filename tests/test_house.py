"""The house's own promises: install script, lock, security rules that text can show."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import signal
import stat
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import run
from tools import install, lock, readme

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compass_core", "tasks", "flows")
SCRIPTS = [ROOT / "run.py", *(ROOT / "tools" / f"{n}.py" for n in ("install", "lock", "readme"))]


def source_files() -> list[Path]:
    return [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def tracked_text() -> list[Path]:
    """Return every text file git knows or would add; all files where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    binary = {".safetensors", ".png", ".parquet", ".npy", ".gz", ".model"}
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call of a file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name:
            return ast.literal_eval(item.value) if isinstance(item.value, ast.Constant) else ...
    return None


def where(path: Path, call: ast.Call) -> str:
    return f"{path.relative_to(ROOT)}:{call.lineno}"


# ------------------------------------------------------------------ security rules
FORBIDDEN = {
    "eval": "S6",
    "exec": "S6",
    "os.system": "S6",
    "os.popen": "S6",
    "pickle.load": "S3",
    "pickle.loads": "S3",
    "cloudpickle.load": "S3",
    "cloudpickle.loads": "S3",
    "dill.load": "S3",
    "joblib.load": "S3",
    "mlflow.pyfunc.load_model": "S3",
    "yaml.load": "S5",
    "yaml.unsafe_load": "S5",
    "yaml.full_load": "S5",
    "torch.hub.load": "S2",
}


def test_the_search_for_rules_sees_the_packages() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in source_files()}
    assert names == set(PACKAGES)
    assert len(source_files()) > 30


def test_no_source_calls_what_runs_foreign_code() -> None:
    found = [
        f"{where(path, call)} {name} ({FORBIDDEN[name]})"
        for path in source_files()
        for name, call in calls(path)
        if name in FORBIDDEN
    ]
    assert found == []


def test_no_source_starts_a_shell() -> None:
    found = [
        where(path, call)
        for path in source_files()
        for _, call in calls(path)
        if keyword(call, "shell") not in (None, False)
    ]
    assert found == []


def test_torch_load_reads_weights_only() -> None:
    found = [
        where(path, call)
        for path in source_files()
        for name, call in calls(path)
        if name == "torch.load" and keyword(call, "weights_only") is not True
    ]
    assert found == []


def test_arrays_are_read_without_pickle() -> None:
    found = [
        where(path, call)
        for path in source_files()
        for name, call in calls(path)
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False
    ]
    assert found == []


NO_REMOTE_CODE_ARGUMENT = {
    # peft reads an adapter's files alone; the base it is put on was loaded by the rule above
    "PeftModel.from_pretrained",
    "PeftConfig.from_pretrained",
    "LoraConfig.from_pretrained",
    # a fixed class of the tokenizers and transformers libraries, which knows no remote code
    "Tokenizer.from_pretrained",
    "PreTrainedTokenizerFast.from_pretrained",
    "GenerationConfig.from_pretrained",
    # a layer made of a tensor
    "torch.nn.EmbeddingBag.from_pretrained",
    "torch.nn.Embedding.from_pretrained",
}


def test_every_loader_refuses_remote_code_explicitly() -> None:
    loaders = ("from_pretrained", "SentenceTransformer", "CrossEncoder", "load_dataset")
    found = [
        f"{where(path, call)} {name}"
        for path in source_files()
        for name, call in calls(path)
        if name.endswith(loaders)
        and name not in NO_REMOTE_CODE_ARGUMENT
        and keyword(call, "modules") is None  # put together from layers: nothing is loaded
        and keyword(call, "trust_remote_code") is not False
    ]
    assert found == []


def test_no_source_allows_remote_code() -> None:
    pattern = re.compile(r"trust_remote_code\s*[=:]\s*(True|1|yes)", re.IGNORECASE)
    found = [str(p.relative_to(ROOT)) for p in source_files() if pattern.search(p.read_text())]
    assert found == []


def test_no_sql_is_put_together_from_values() -> None:
    """Values are bound; only fixed identifiers may be formatted into a statement."""
    verbs = re.compile(r"\b(select|insert|delete|update|copy)\b.*'\{", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if verbs.search(line)
    ]
    assert found == []


# ------------------------------------------------------------------ what files may say
def test_no_file_names_a_machine_path() -> None:
    pattern = re.compile(r"/(?:home|root|Users|work|workspace)/[A-Za-z0-9_.]")
    allowed = {"tests/test_house.py"}
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked_text()
        if str(path.relative_to(ROOT)) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_file_names_a_package_registry() -> None:
    hosts = ("pypi" + ".org", "python" + "hosted.org", "--index-url", "extra-index-url")
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_text()
        if path.name != "test_house.py"
        and any(host in path.read_text(encoding="utf-8") for host in hosts)
    ]
    assert found == []


def test_nothing_below_tests_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_licence_and_notice_are_whole() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "SPDX-License-Identifier: Unicode-3.0" in notice
    assert "COPYRIGHT AND PERMISSION NOTICE" in notice


# ------------------------------------------------------------------ the lock
def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split()[0].split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict[str, object]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(found, dict)
    return found


def test_lock_has_one_exact_version_per_package() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert len(pins) > 100
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.!]*", pin) for pin in pins)
    assert [name for name, n in Counter(p.split("==")[0] for p in pins).items() if n > 1] == []
    names = [pin.split("==")[0] for pin in pins]
    assert names == sorted(names)


def test_lock_has_a_hash_for_everything_but_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    bare = [pin for pin in pins if not re.search(r" --hash=sha256:[0-9a-f]{64}$", pin)]
    assert bare == ["torch==2.13.0"]


def test_lock_pins_what_was_measured_and_bounds_fastapi() -> None:
    pins = locked()
    assert pins["torch"] == "2.13.0"
    assert (pins["prefect"], pins["mlflow"], pins["duckdb"]) == ("3.8.8", "3.17.2", "2.0.0")
    assert tuple(map(int, pins["fastapi"].split(".")[:2])) < (0, 151)
    assert "torchvision" not in pins


def test_lock_satisfies_every_requirement_of_the_project() -> None:
    pins = locked()
    wanted = project()
    extras = wanted["optional-dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(wanted["dependencies"], list)
    requirements = [Requirement(text) for text in [*wanted["dependencies"], *extras["dev"]]]
    assert len(requirements) > 20
    unmet = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(
            pins.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert unmet == []


def test_this_environment_is_the_locked_one() -> None:
    other = {}
    for name, version in locked().items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if found != version:
            other[name] = f"{found}, locked {version}"
    assert other == {}, "run `python3 run.py setup`"


def test_freeze_becomes_a_lock_without_labels_and_without_ourselves() -> None:
    frozen = (
        "torch==2.13.0+cpu\nPyYAML==6.0.3\ntorchvision==0.28.0\nnvidia-cudnn-cu12==9\na_b.c==1\n"
    )
    pins = lock.read_pins(frozen)
    assert pins == {"a-b-c": "1", "pyyaml": "6.0.3", "torch": "2.13.0"}
    text = lock.lock_text(pins, {"a-b-c": "0" * 64, "pyyaml": "1" * 64}, "here")
    assert text.splitlines()[-3:] == [
        f"a-b-c==1 --hash=sha256:{'0' * 64}",
        f"pyyaml==6.0.3 --hash=sha256:{'1' * 64}",
        "torch==2.13.0",
    ]
    assert "# hashes: here" in text.splitlines()


def test_a_package_from_a_folder_cannot_be_locked() -> None:
    with pytest.raises(ValueError, match="did not come from a package index"):
        lock.read_pins("left @ file:somewhere\n")


# ------------------------------------------------------------------ run.py
def test_run_script_imports_nothing_but_the_standard_library() -> None:
    own = {"tools", "run"}
    for path in SCRIPTS:
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
        assert imported - set(sys.stdlib_module_names) - own == set(), path.name


def test_run_script_refuses_an_old_python_before_it_needs_a_new_one() -> None:
    """The check stands before the first import that older versions lack."""
    text = (ROOT / "run.py").read_text(encoding="utf-8")
    assert text.index("sys.version_info < OLDEST_PYTHON") < text.index("from tools")
    head = text[: text.index("from tools")]
    assert "from __future__" not in head
    assert "tomllib" not in head


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that looks finished but holds only a python."""
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    for module in (install, run):
        monkeypatch.setattr(module, "VENV", folder)
    monkeypatch.setattr(install, "STAMP", folder / "compass-stamp")
    monkeypatch.setattr(install, "INSTALL_LOG", folder / "install.log")
    return folder


def test_environment_is_ready_only_with_a_current_stamp(
    venv: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not install.is_ready()
    install.write_stamp()
    assert install.is_ready()
    changed = tmp_path / "constraints.txt"
    changed.write_text(install.LOCK.read_text(encoding="utf-8") + "new==1\n", encoding="utf-8")
    monkeypatch.setattr(install, "LOCK", changed)
    assert not install.is_ready()


def test_ready_environment_is_used_without_calling_pip(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install.write_stamp()
    monkeypatch.setattr(install, "fill_venv", lambda: pytest.fail("pip was called"))
    install.install()


def test_failed_installation_leaves_no_stamp(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise install.SetupError("no network")

    (venv / "compass-stamp").write_text("of an older lock", encoding="utf-8")
    monkeypatch.setattr(install, "fill_venv", fail)
    monkeypatch.setattr(install, "venv_works", lambda: True)
    with pytest.raises(install.SetupError):
        install.install()
    assert not (venv / "compass-stamp").exists()


def test_packages_that_a_killed_pip_left_half_copied_are_forgotten(venv: Path) -> None:
    site = venv / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole-1": ["METADATA", "INSTALLER"], "half-1": ["METADATA"]}.items():
        (site / f"{name}.dist-info").mkdir(parents=True)
        for file in files:
            (site / f"{name}.dist-info" / file).touch()
    (site / "~umpy").mkdir()
    install.drop_interrupted_packages()
    assert sorted(path.name for path in site.iterdir()) == ["whole-1.dist-info"]


def test_missing_venv_module_is_named_with_the_package_that_has_it(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "venv_works", lambda: False)
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(install.SetupError, match=r"apt install python3\.\d+-venv"):
        install.make_venv()


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "pip config list"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "COMPASS_LOCK=versions"),
        ("something else", "run the command again"),
    ],
)
def test_failure_of_pip_comes_with_advice(output: str, advice: str) -> None:
    assert advice in install.explain_failure([output])


def test_progress_says_what_pip_is_doing(venv: Path) -> None:
    record = venv / "lib" / "python3.11" / "site-packages" / "a-1.dist-info"
    record.mkdir(parents=True)
    (record / "INSTALLER").touch()
    lines = ["Collecting numpy==2", "  Downloading somewhere/numpy-2-x.whl (16 MB)"]
    assert install.describe(lines) == "1 packages looked up, at numpy-2-x.whl"
    writing = install.describe([*lines, "Installing collected packages: a, b"])
    assert writing == "1 packages in place, 2 in this step"


def test_hashes_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPASS_LOCK", "versions")
    assert not install.hashes_apply()


def test_arguments_after_test_go_to_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(run, "install", lambda: None)
    monkeypatch.setattr(run, "run", lambda *arguments: seen.append(arguments) or 5)
    assert run.main(["test", "tests/x.py", "-k", "gap", "--", "--maxfail=1"]) == 5
    assert run.main(["test", "--slow"]) == 5
    assert run.main(["test", "--only-slow", "-rs"]) == 5
    assert run.main(["test", "--nightly"]) == 5
    assert seen == [
        ("-m", "pytest", "tests/x.py", "-k", "gap", "--maxfail=1"),
        ("-m", "pytest", "-m", "not nightly and not gpu and not network"),
        ("-m", "pytest", "-m", "slow and not gpu and not network", "-rs"),
        ("-m", "pytest", "-m", "nightly and not gpu and not network"),
    ]


def test_unknown_command_and_stray_argument_are_usage_errors() -> None:
    for arguments in (["adapt"], ["setup", "--fast"]):
        with pytest.raises(SystemExit) as caught:
            run.main(arguments)
        assert caught.value.code == 2


def test_exit_code_of_the_child_is_passed_on(venv: Path) -> None:
    assert run.run("-c", "raise SystemExit(7)") == 7
    assert run.run("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 137


def test_ctrl_c_ends_with_130_after_the_child_has_cleaned_up(tmp_path: Path) -> None:
    marker = tmp_path / "clean"
    child = (
        "import pathlib, time\n"
        "try:\n    print('up', flush=True); time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    pathlib.Path({str(marker)!r}).touch()\n"
    )
    script = (
        "import pathlib, sys, run\nrun.venv_python = lambda: pathlib.Path(sys.executable)\n"
        f"sys.exit(run.run('-c', {child!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert marker.exists()


def test_summary_replaces_what_stands_between_the_marks() -> None:
    text = "a\n<!-- demo-summary:start -->\nold\n<!-- demo-summary:end -->\nb\n"
    filled = readme.fill(text, "\nlanguage  gain  \nsw \\1 +1\n")
    assert filled.splitlines() == [
        "a",
        "<!-- demo-summary:start -->",
        "```text",
        "language  gain",
        "sw \\1 +1",
        "```",
        "<!-- demo-summary:end -->",
        "b",
    ]
    assert readme.fill(filled, "language  gain\nsw \\1 +1") == filled
    with pytest.raises(ValueError, match="0 times"):
        readme.fill("nothing", "x")


def test_summary_of_the_newest_demo_run_is_taken(tmp_path: Path) -> None:
    runs = {
        "1": ("adapt-languages", "kind: starter"),
        "2": ("adapt-languages", "kind: starter"),
        "3": ("adapt-languages", "kind: files"),
        "4": ("compare-strategies", "kind: starter"),
        "5": ("adapt-languages", "kind: starter\n  dry_run: true"),
    }
    for name, (flow, config) in runs.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "summary.txt").touch()
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        (folder / "run.json").write_text(json.dumps({"flow": flow}), encoding="utf-8")
    found = readme.newest_summary(tmp_path)
    assert found is not None
    assert found.parent.name == "2"
    assert readme.newest_summary(tmp_path / "runs") is None


# ------------------------------------------------------------------ continuous integration
def test_ci_script_runs_the_commands_of_the_readme_and_cannot_hide_a_failure() -> None:
    path = ROOT / ".ci" / "run"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in text
    commands = ["run.py setup", "run.py check", "run.py test -rs", "run.py test --only-slow"]
    positions = [text.index(command) for command in commands]
    assert positions == sorted(positions)


def test_makefile_is_a_list_of_aliases() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "check", "readme", "lock", "clean"):
        assert re.search(rf"\b{target}\b", text), target
