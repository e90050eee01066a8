"""Wrong input, through the real command line: exit code, advice, and nothing expensive started."""

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from compass_core.starter import base_path, encoder_path
from flows import cli

CONFIG = """\
project: mine
languages: [sw, tr]
data:
  usage: {{path: usage.jsonl}}
  coverage: {{path: coverage.jsonl}}
  pool: {{path: pool.jsonl}}
  test: {{path: test.jsonl}}
clustering: {{n_clusters: [2], relevance_quantile: 0}}
selection: {{budget: 10}}
training: {{lora_rank: 4, batch_size: 8, min_steps: 2, max_steps: 2, max_length: 64}}
evaluation: {{n_bootstrap: 100}}
baselines: []
execution: {{trainers: 0, max_parallel: 2}}
{more}
"""
WORDS = ("river", "market", "music", "school", "doctor", "train")


def rows(role, language, n):
    for i in range(n):
        word = WORDS[i % len(WORDS)]
        row = {"id": f"{role}-{language}-{i}", "language": language}
        if role == "usage":
            yield row | {"prompt": f"{language} asks about {word} number {i}"}
        elif role == "test":
            yield row | {
                "question": f"{language} test of {word} {i}?",
                "choices": ["yes", "no"],
                "answer": i % 2,
            }
        else:
            yield row | {"prompt": f"{role} {language} {word} {i}", "response": f"It is {word}."}


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def mine(tmp_path):
    """A folder with a configuration and four good corpora of two languages."""
    folder = tmp_path / "mine"
    folder.mkdir()
    sizes = {"usage": 12, "coverage": 12, "test": 12, "pool": 30}
    for role, n in sizes.items():
        languages = ("en", "fr") if role == "pool" else ("sw", "tr")
        write(folder / f"{role}.jsonl", [r for code in languages for r in rows(role, code, n)])
    (folder / "compass.yaml").write_text(CONFIG.format(more=""), "utf-8")
    return folder


@pytest.fixture
def compass(home, prefect_backend, monkeypatch, capsys):
    """Call the command line in this process; return exit code and both outputs."""

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it for good
    # Handlers made in an earlier test hold that test's captured stream.
    monkeypatch.setattr("logging.raiseExceptions", False)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["compass", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


def assert_refused(answer, code, words, home):
    """One message with its code and advice, no traceback, and nothing expensive behind it."""
    found, out, err = answer
    said = out + err
    assert found == code, said
    for word in words:
        assert word in said, said
    assert "Traceback" not in said
    assert "| ERROR" not in said, "Prefect's log is for its interface"
    assert err.count("\n") <= 25, "a message fits one screen"
    for stage in ("embed", "cluster", "adapter-train", "evaluate"):
        assert not (home / "store" / stage).exists(), f"{stage} ran before the check"


# ------------------------------------------------------------------ what is wrong with the input
def add(folder, text):
    (folder / "compass.yaml").write_text(CONFIG.format(more=text), "utf-8")


def edit(name, change):
    def apply(folder):
        path = folder / name
        write(path, [change(i, row) for i, row in enumerate(read(path))])

    return apply


def replace(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def append(name, data):
    def apply(folder):
        with (folder / name).open("ab") as stream:
            stream.write(data)

    return apply


def without(*fields):
    return lambda _i, row: {name: value for name, value in row.items() if name not in fields}


def model_folder(change):
    def apply(folder):
        shutil.copytree(base_path(), folder / "model")
        change(folder / "model")
        add(folder, "base: {model: model}")

    return apply


def encoder_folder(change):
    def apply(folder):
        shutil.copytree(encoder_path(), folder / "encoder")
        change(folder / "encoder")
        add(folder, "embedding: {encoder: encoder}")

    return apply


def drop(*patterns):
    def change(folder):
        for pattern in patterns:
            for path in folder.rglob(pattern):
                path.unlink()

    return change


def pickle_only(folder):
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_name("pytorch_model.bin"))


def cut_weights(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def remote_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))


def pool_of_target(folder):
    write(folder / "pool.jsonl", list(rows("pool", "sw", 30)))
    config = (folder / "compass.yaml").read_text("utf-8").replace("[sw, tr]", "[sw]")
    (folder / "compass.yaml").write_text(config, "utf-8")


def usage_is_test(folder):
    questions = [row["question"] for row in read(folder / "test.jsonl")]
    edit("usage.jsonl", lambda i, row: row | {"prompt": questions[i]})(folder)


def add_pool(folder, name):
    path = folder / "compass.yaml"
    path.write_text(path.read_text("utf-8").replace("pool.jsonl", name), "utf-8")


def cut_gzip(folder):
    data = gzip.compress((folder / "pool.jsonl").read_bytes())
    (folder / "pool.jsonl.gz").write_bytes(data[: len(data) // 2])
    add_pool(folder, "pool.jsonl.gz")


FILES = {
    "usage is missing": (
        lambda f: (f / "usage.jsonl").unlink(), ["E01", "usage.jsonl"]),
    "a name nearly right": (
        lambda f: (f / "pool.jsonl").rename(f / "pools.jsonl"), ["E01", "pools.jsonl"]),
    "a folder instead of a file": (
        lambda f: ((f / "test.jsonl").unlink(), (f / "test.jsonl").mkdir()), ["E", "test.jsonl"]),
    "usage is empty": (replace("usage.jsonl", b""), ["E03", "usage.jsonl"]),
    "pool has blank lines only": (replace("pool.jsonl", b"\n\n"), ["E03", "pool.jsonl"]),
    "test is cut": (append("test.jsonl", b'{"id": "x", "lang'), ["E04", "test.jsonl:25"]),
    "pool is not UTF-8": (append("pool.jsonl", b'{"id": "\xff\xfe"}\n'), ["E05", "pool.jsonl:61"]),
    "usage is UTF-16": (
        replace("usage.jsonl", '{"language": "sw"}\n'.encode("utf-16")), ["E05", "UTF-8"]),
    "a web page saved as data": (
        replace("usage.jsonl", b"<!doctype html><html></html>"), ["E18", "usage.jsonl"]),
    "usage has no text": (
        edit("usage.jsonl", without("prompt")), ["E15", "usage.jsonl", "id, language"]),
    "pool has no responses": (
        edit("pool.jsonl", without("response")), ["E15", "pool.jsonl", "prompt"]),
    "test has no answers": (
        edit("test.jsonl", without("answer")), ["E15", "test.jsonl", "answer"]),
    "duplicate ids in the pool": (
        edit("pool.jsonl", lambda i, r: r | {"id": "same"} if i in (4, 8) else r),
        ["E17", "'same'", "pool.jsonl:9"]),
    "usage is the test set": (usage_is_test, ["E47", "usage"]),
    "pool without other languages": (pool_of_target, ["E51", "pool", "other language"]),
    "cut gzip": (cut_gzip, ["pool.jsonl.gz"]),
    "an unreadable file": (
        lambda f: (f / "usage.jsonl").chmod(0), ["usage.jsonl"]),
}  # fmt: skip


MODELS = {
    "base does not exist": (lambda f: add(f, "base: {model: ./nowhere}"), ["E26", "nowhere"]),
    "base without tokenizer": (model_folder(drop("token*", "vocab*", "spiece*")), ["E32"]),
    "base with pickle weights": (model_folder(pickle_only), ["E28", "safetensors"]),
    "base without weights": (model_folder(drop("*.safetensors")), ["E26", "no weights"]),
    "base with cut weights": (model_folder(cut_weights), ["E29"]),
    "base without config": (model_folder(drop("config.json")), ["E26", "config.json"]),
    "base with code": (model_folder(remote_code), ["E27", "auto_map"]),
    "layers that are not there": (
        lambda f: add_training(f, "target_modules: [q_prj]"), ["E35", "q_proj"]),
    "a device that is not there": (
        lambda f: add(f, "base: {model: starter, device: 'cuda:77'}"), ["E26", "cuda:77"]),
    "encoder does not exist": (lambda f: add(f, "embedding: {encoder: ./no}"), ["E26", "no"]),
    "encoder with pickle weights": (encoder_folder(pickle_only), ["E28"]),
    "encoder that is no encoder": (encoder_folder(drop("*.json")), ["E26"]),
    "encoder with code": (
        encoder_folder(
            lambda e: (e / "modules.json").write_text('[{"idx":0,"path":"","type":"evil.Model"}]')
        ),
        ["E27"]),
}  # fmt: skip


def add_training(folder, text):
    path = folder / "compass.yaml"
    path.write_text(
        path.read_text("utf-8").replace("training: {", f"training: {{{text}, "), "utf-8"
    )


ARGUMENTS = {
    "unknown language": (["languages=sw,qqx"], ["E43", "qqx"]),
    "ambiguous language": (["languages=qu"], ["E43", "quy"]),
    "language by half a name": (["languages=Swahil"], ["E43", "Swahili"]),
    "a path as language": (["languages=../../etc"], ["E43"]),
    "misspelt key": (["training.leanring_rate=1"], ["E41", "learning_rate"]),
    "several problems at once": (
        ["training.leanring_rate=1", "selection.budget=-4", "languages=qqx"],
        ["leanring_rate", "selection.budget", "qqx"]),
    "budget beyond the pool": (["selection.budget=61"], ["E60", "60", "selection.budget"]),
    "licence nobody gave": (["selection.licences=mit"], ["E60", "mit"]),
    "no such split": (["data.usage.split=dev"], ["E25", "dev"]),
    "no such column": (["data.usage.columns.prompt=body"], ["E15", "body", "prompt"]),
    "language not in the files": (["languages=yo"], ["E51", "Yoruba"]),
    "an address instead of a file": (
        ["data.usage.path=http://169.254.169.254/x.jsonl"], ["E45"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), FILES.values(), ids=FILES)
def test_unusable_file_is_refused_before_any_work(change, words, mine, compass, home):
    if change is FILES["an unreadable file"][0] and os.geteuid() == 0:
        pytest.skip("runs as the superuser, who can read every file")
    change(mine)
    assert_refused(compass("adapt", mine / "compass.yaml"), 2, words, home)


@pytest.mark.parametrize(("change", "words"), MODELS.values(), ids=MODELS)
def test_unusable_model_is_refused_before_any_work(change, words, mine, compass, home):
    change(mine)
    assert_refused(compass("adapt", mine / "compass.yaml"), 2, words, home)


@pytest.mark.parametrize(("overrides", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_unusable_setting_is_refused_before_any_work(overrides, words, mine, compass, home):
    assert_refused(compass("adapt", mine / "compass.yaml", *overrides), 2, words, home)


# ------------------------------------------------------------------ other commands
COMMANDS = {
    "no run to show": (["manifest", "-l", "sw"], ["E62", "compass adapt"]),
    "no run to report": (["report"], ["E01", "compass adapt"]),
    "no runs to compare": (["diff", "a", "b"], ["E01", "'a'"]),
    "no adapter to ask": (["generate", "-l", "sw", "x"], ["E53", "compass adapt"]),
    "no adapter to roll back": (["rollback", "-l", "sw"], ["E53", "compass status"]),
    "language that is none": (["generate", "-l", "qqx", "x"], ["E43"]),
    "no configuration": (["adapt", "compas.yaml"], ["E01", "did you mean compass.yaml"]),
    "no configuration to study": (["study", "no.yaml"], ["E01", "no.yaml"]),
    "study of unknown strategies": (["study", "compass.yaml", "strategies=best"], ["best"]),
    "init without files": (
        ["init", "--usage", "no", "--pool", "no", "--test", "no", "--languages", "sw",
         "-o", "new.yaml"],
        ["E01", "no"]),
    "init over a file": (
        ["init", "--usage", "usage.jsonl", "--pool", "pool.jsonl", "--test", "test.jsonl",
         "--languages", "sw"],
        ["E44", "compass.yaml exists", "-o"]),
    "encoder from no file": (["fit-encoder", "no.jsonl", "-o", "enc"], ["E01", "no.jsonl"]),
    "encoder from rows that are not parallel": (
        ["fit-encoder", "usage.jsonl", "-o", "enc", "--text", "prompt"], ["parallel_id"]),
    "no such command": (["frobnicate"], ["No such command"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS)
def test_every_command_refuses_what_it_cannot_do(
    arguments, words, mine, compass, home, monkeypatch
):
    monkeypatch.chdir(mine)
    assert_refused(compass(*arguments), 2, words, home)
    assert not (mine / "enc").exists()


# ------------------------------------------------------------------ one language, state, disk
def dry_run(compass, mine, *overrides):
    guard = "clustering.script_guard=off"
    return compass("adapt", mine / "compass.yaml", "--dry-run", guard, *overrides)


def test_language_with_a_bad_row_is_named_early_and_stops_nobody(mine, compass, home):
    edit("usage.jsonl", lambda i, r: r | {"prompt": " "} if i == 3 else r)(mine)
    code, out, err = dry_run(compass, mine)
    assert code == 1
    assert "E16" in out
    assert "usage.jsonl:4" in out
    lines = out.splitlines()
    told = next(i for i, line in enumerate(lines) if "Swahili" in line and "FAILED" in line)
    assert told < next(i for i, line in enumerate(lines) if "Pool" in line and "embed" in line)
    assert "Turkish        sample compass" in out
    assert "Traceback" not in out + err
    code, out, _ = compass("manifest", "-l", "tr")
    assert code == 0
    assert "10 examples selected" in out


def test_clusters_that_are_languages_are_refused_with_the_remedy(mine, compass, home):
    themes = ("the river of stone and old sand", "le marche du pain et des pommes")
    for name in ("usage", "coverage", "pool"):
        edit(
            f"{name}.jsonl",
            lambda i, r: r | {"prompt": f"{themes[i // 30 if 'pool' in r['id'] else i % 2]} {i}"},
        )(mine)
    code, out, err = compass("adapt", mine / "compass.yaml")
    assert code == 2, out + err
    assert "E61" in out
    assert "embedding.centre_languages" in out
    assert "Traceback" not in out + err
    assert not (home / "store" / "adapter-train").exists()


def test_full_disk_keeps_what_was_finished_and_the_next_run_goes_on(
    mine, compass, home, monkeypatch
):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.selection.write_table", full)
        code, out, err = dry_run(compass, mine)
    assert code == 1
    assert "E64" in out
    assert "compass clean" in out
    assert "Traceback" not in out + err
    finished = {p: p.stat().st_mtime_ns for p in (home / "store").glob("embed/*/MANIFEST.json")}
    assert finished
    assert not list((home / "store" / "tmp").iterdir())
    assert dry_run(compass, mine)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in finished} == finished


def test_store_of_another_version_is_left_alone(mine, compass, home):
    (home / "store").mkdir()
    (home / "store" / "STORE.json").write_text('{"store_version": 99}')
    answer = compass("adapt", mine / "compass.yaml")
    assert_refused(answer, 2, ["E62", "99", "COMPASS_HOME"], home)
    assert json.loads((home / "store" / "STORE.json").read_text()) == {"store_version": 99}


@pytest.mark.parametrize("damage", ["another version", "no database"])
def test_catalogue_that_cannot_be_read_is_rebuilt_from_the_store(damage, mine, compass, home):
    assert dry_run(compass, mine)[0] == 0
    _, before, _ = compass("manifest", "-l", "sw")
    if damage == "another version":
        with duckdb.connect(str(home / "catalog.duckdb")) as connection:
            connection.execute("UPDATE meta SET schema_version = 99")
    else:
        (home / "catalog.duckdb").write_bytes(b"not a database" * 1000)
    code, after, err = compass("manifest", "-l", "sw")
    assert (code, after) == (0, before)
    assert "Traceback" not in err


# ------------------------------------------------------------------ signals
SMALL = [
    "data.n_coverage=60", "data.n_usage=60", "data.n_test=120", "clustering.n_clusters=8",
    "selection.budget=40", "training.min_steps=400", "training.max_steps=400",
    "training.checkpoint_every=20", "execution.trainers=1", "baselines=", "languages=sw",
]  # fmt: skip


def processes_of(home):
    """Return the running processes whose environment names this home."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and str(home).encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        pytest.param(signal.SIGINT, True, 130, id="Ctrl-C in a terminal"),
        pytest.param(signal.SIGTERM, False, 143, id="terminated"),
        pytest.param(signal.SIGKILL, False, -9, id="killed"),
    ],
)
def test_interrupted_run_leaves_no_process_and_goes_on_where_it_stopped(
    number, to_all, code, tmp_path
):
    home = tmp_path / "home"
    config = Path(__file__).parents[2] / "configs" / "starter.yaml"
    command = [sys.executable, "-m", "flows.cli", "adapt", str(config), *SMALL]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    with (tmp_path / "err.txt").open("w") as err:
        process = subprocess.Popen(
            command,
            env=environment | {"COMPASS_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
        wait_for(lambda: list(home.glob("store/checkpoints/*/step-*")), 240)
        os.killpg(process.pid, number) if to_all else process.send_signal(number)
        assert process.wait(30) == code
    wait_for(lambda: not processes_of(home), 15)
    said = (tmp_path / "err.txt").read_text()
    assert "Traceback" not in said
    assert "leaked" not in said
    assert ("finished work is kept" in said) == (number != signal.SIGKILL)
    before = {p: p.stat().st_mtime_ns for p in home.glob("store/*/*/MANIFEST.json")}
    assert {p.parent.parent.name for p in before} >= {"ingest", "embed", "cluster", "sample"}
    again = subprocess.run(
        command,
        env=environment | {"COMPASS_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before
    # A checkpoint that was being written when the signal came is noticed and said.
    assert not [x for x in again.stderr.splitlines() if not x.startswith("Checkpoint ")]
