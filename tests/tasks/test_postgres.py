"""MLflow on PostgreSQL: several machines that start at once and promote at once."""

import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from compass_core.errors import InputError
from compass_core.languages import canonical_language
from compass_core.storage import sha256_file
from tasks import registry, tracking
from tasks.settings import tracking_uri, without_password
from tasks.tracking_schema import initialise_store

pytest_plugins = ["tests.postgres"]

LANGUAGES = ("sw", "tr", "yo", "ha", "zu", "am", "kk", "hi")


def make_adapter(folder, value):
    folder.mkdir(parents=True)
    weights = {"layer.lora_A.weight": np.full((4, 8), value, np.float32)}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (folder / "README.md").write_text("# An adapter")
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
    (folder / "ADAPTER.json").write_text(json.dumps({"files": files}))
    return folder


def promote_some(uri, home, codes, start, results):
    """Start as a new machine does, then promote two adapters per language."""
    start.wait()
    try:
        tracking.configure(uri, home / "mlartifacts")
        for code in codes:
            language = canonical_language(code)
            name = registry.model_name("starter", language)
            for value in (1.0, 2.0):
                run_id = tracking.start_run(
                    "compass", language, tags={"language": language}, params={"value": value}
                )
                tracking.log_metrics(run_id, {"accuracy": value / 2})
                folder = make_adapter(home / f"{language}-{value}", value)
                version = registry.register_adapter(name, folder, run_id=run_id, tags={"seed": 0})
                registry.record_verdict(name, version, promote=True, reasons=["better"], tags={})
                before = registry.champion(name)
                expected = before.version if before else None
                registry.promote(name, version, expected_champion=expected)
                tracking.finish_run(run_id)
        results.put("")
    except BaseException as error:
        results.put(f"{codes}: {type(error).__name__}: {error}")
        raise


def run_machines(uri, tmp_path, n_machines):
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    machines = []
    for number in range(n_machines):
        home = tmp_path / f"machine-{number}"
        home.mkdir()
        codes = LANGUAGES[number::n_machines]
        args = (uri, home, codes, start, results)
        machines.append(context.Process(target=promote_some, args=args))
    for machine in machines:
        machine.start()
    start.set()
    said = [results.get(timeout=500) for _ in machines]
    for machine in machines:
        machine.join()
    assert said == [""] * n_machines


@pytest.mark.nightly
@pytest.mark.parametrize("n_machines", [4, 8])
def test_machines_that_start_and_promote_at_once_end_with_every_champion(
    tmp_path, postgres, monkeypatch, n_machines
):
    uri = postgres.database()
    run_machines(uri, tmp_path, n_machines)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.configure(uri, tmp_path / "reader" / "mlartifacts")
    found = registry.list_serving()
    assert {serving.language for serving in found} == {canonical_language(c) for c in LANGUAGES}
    for serving in found:
        assert serving.champion is not None
        assert serving.previous is not None
        assert (serving.champion.version, serving.previous.version) == ("2", "1")


@pytest.mark.nightly
def test_wrong_password_is_an_error_that_does_not_repeat_it(tmp_path, postgres):
    uri = postgres.database().replace(postgres.password, "not-the-password")
    script = (
        "import sys; from pathlib import Path; from tasks import tracking\n"
        "tracking.configure(sys.argv[1], Path(sys.argv[2]) / 'mlartifacts')\n"
    )
    command = [sys.executable, "-c", script, uri, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    last = ran.stderr.strip().splitlines()[-1]
    assert "password authentication failed" in ran.stderr
    assert "not-the-password" not in last


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("postgresql://me:p%40ss@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("postgresql+psycopg2://me:a:b@db:5432/m", "postgresql+psycopg2://me:***@db:5432/m"),
        ("https://me:secret@mlflow.example.org", "https://me:***@mlflow.example.org"),
        (
            "postgresql:///m?host=db&password=x&user=me",
            "postgresql:///m?host=db&password=***&user=me",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_address_is_shown_without_its_password(address, shown):
    assert without_password(address) == shown


def test_missing_driver_is_an_error_with_advice(mlflow_home):
    with pytest.raises(InputError, match=r"E91 .*\*\*\*.*compass-adapt\[postgres\]"):
        initialise_store("postgresql+nosuchdriver://me:secret@db/mlflow", mlflow_home)


def test_address_without_a_driver_means_the_installed_one(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:x@db/mlflow")
    assert tracking_uri() == "postgresql+psycopg2://me:x@db/mlflow"


def test_report_and_doctor_show_no_password(home, monkeypatch, capsys):
    from flows.inspecting import examine
    from tasks.reporting import _links

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:s3cret-word@db:5432/mlflow")
    assert "s3cret-word" not in str(_links())
    assert "***" in str(_links())
    examine()
    assert "s3cret-word" not in capsys.readouterr().out
