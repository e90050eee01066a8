"""The command line over one finished run: every question is answered, every command explained."""

import json

import pytest

from compass_core.errors import DataError, InputError, TransientError
from flows import cli
from flows.running import exit_code

GOOD = ("swh_Latn", "tur_Latn")
UNKNOWN = "kin_Latn"


@pytest.fixture
def compass(finished_run, monkeypatch, capsys):
    """Call the command line in this process; return exit code, output and errors."""
    monkeypatch.setenv("COMPASS_HOME", str(finished_run.home))
    monkeypatch.setattr("flows.terminal.OUT.width", 200, raising=False)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["compass", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


def test_every_command_says_what_it_is_for():
    commands = cli.app.registered_commands
    assert len(commands) > 12
    for command in commands:
        assert command.callback.__doc__, f"{command.name} has no help"


def test_manifest_says_what_was_selected_from_where_and_why(compass):
    code, out, _ = compass("manifest", "-l", "sw", "--examples", "3")
    assert code == 0
    assert "40 examples selected by compass of a budget of 40" in out
    assert "what it is about" in out
    assert "cldr:" in out


def test_manifest_without_a_language_lists_the_languages(compass, finished_run):
    run = finished_run.record["run_id"]
    code, _, err = compass("manifest", "--run", run)
    assert code == 2
    assert all(language in err for language in GOOD)


def test_status_is_a_table_for_people_and_json_for_programs(compass, finished_run):
    code, out, _ = compass("status")
    assert code == 0
    assert "Swahili" in out
    code, out, _ = compass("status", "--json")
    rows = {row["language"]: row for row in json.loads(out)["languages"]}
    assert set(rows) == {*GOOD, UNKNOWN}
    promoted = finished_run.record["languages"][GOOD[0]]["verdict"]["promote"]
    row = rows[GOOD[0]]
    assert bool(row["champion"]) == promoted
    assert (row["drift"], row["window"]) == ("no-window" if promoted else "no-champion", "")
    if promoted:
        assert row["run_id"] == finished_run.record["run_id"]
        assert {part["role"] for part in row["data"]} >= {"usage", "coverage", "pool", "sample"}
        assert row["trained_tokens"] > 0
    assert [item["code"] for item in rows[UNKNOWN]["attention"]] == ["run-failed"]
    assert compass("status", "--check")[0] == 1


def test_status_of_one_language_tells_everything(compass, finished_run):
    code, out, _ = compass("status", "-l", "Swahili")
    assert code == 0
    assert finished_run.record["run_id"] in out
    assert "data coverage" in out or "nothing" in out


def test_generate_answers_with_a_registered_adapter(compass, finished_run):
    promoted = finished_run.record["languages"][GOOD[0]]["verdict"]["promote"]
    alias = "champion" if promoted else "challenger"
    code, out, err = compass(
        *("generate", "-l", "Swahili", "<kind?> Paris ="),
        *("--alias", alias, "--max-new-tokens", "6"),
    )
    assert code == 0, err
    assert out.endswith("\n"), "an adapter of a dozen steps may well answer with nothing"


def test_generate_for_a_language_without_adapter_says_what_to_do(compass):
    code, _, err = compass("generate", "-l", "fr", "x")
    assert code == 2
    assert "E53" in err
    assert "compass adapt" in err


def test_report_can_be_rendered_again(compass, finished_run):
    page = finished_run.home / "runs" / finished_run.record["run_id"] / "report.html"
    before = page.read_bytes()
    page.unlink()
    code, out, _ = compass("report", "--run", finished_run.record["run_id"])
    assert code == 0
    assert page.as_uri() in out
    assert page.read_bytes() == before


def test_diff_of_a_run_with_itself_finds_nothing(compass, finished_run):
    run = finished_run.record["run_id"]
    code, out, _ = compass("diff", run, run)
    assert code == 0
    assert "The settings are equal" in out
    assert "+0.0" in out


def test_diff_names_runs_that_do_not_exist(compass, finished_run):
    code, _, err = compass("diff", "nothing", finished_run.record["run_id"])
    assert code == 2
    assert finished_run.record["run_id"] in err


def test_clean_deletes_nothing_that_the_last_run_needs(compass, finished_run):
    manifests = set((finished_run.home / "store").glob("*/*/MANIFEST.json"))
    code, out, _ = compass("clean", "--keep-runs", "100")
    assert code == 0
    assert "0 runs" in out
    assert set((finished_run.home / "store").glob("*/*/MANIFEST.json")) == manifests


def test_rebuilt_index_gives_the_same_answers(compass, finished_run):
    _, before, _ = compass("manifest", "-l", "tr")
    (finished_run.home / "catalog.duckdb").unlink()
    code, out, _ = compass("rebuild-index")
    assert code == 0
    assert "artefacts" in out
    assert compass("manifest", "-l", "tr")[1] == before


def test_doctor_finds_a_healthy_installation(compass):
    code, out, _ = compass("doctor")
    assert code == 0
    assert "starter base" in out


def outcomes(*statuses):
    return {
        "languages": {
            str(number): {"status": status, "error_kind": kind}
            for number, (status, kind) in enumerate(statuses)
        }
    }


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([("promoted", ""), ("kept", "")], 0),
        ([("kept", "")], 0),
        ([("promoted", ""), ("failed", DataError.__name__)], 1),
        ([("failed", DataError.__name__), ("failed", InputError.__name__)], 2),
        ([("failed", DataError.__name__), ("failed", TransientError.__name__)], 1),
    ],
)
def test_exit_code_tells_done_from_failed_from_wrong_input(statuses, code):
    assert exit_code(outcomes(*statuses)) == code


def test_explain_names_the_widest_gaps_and_what_was_taken_for_them(compass):
    code, out, _ = compass("explain", "-l", "sw", "--clusters", "2")
    assert code == 0
    assert "40 examples were selected by compass (budget 40)" in out
    assert out.count("within reach") == 2
    assert "before" in out
    assert "a random draw of this size" in out
    assert "translations found" in out
    code, out, _ = compass("explain", "-l", "sw", "--json")
    told = json.loads(out)
    assert 1 <= len(told["clusters"]) <= 5
    gaps = [cluster["gap"] for cluster in told["clusters"]]
    assert min(gaps) > 0
    assert gaps == sorted(gaps, reverse=True)
    assert told["match"]["js_after"] < told["match"]["js_random"] < told["match"]["js_before"]


def test_explain_of_a_language_without_selection_says_which_have_one(compass):
    code, _, err = compass("explain", "-l", "rw")
    assert code == 2
    assert all(language in err for language in GOOD)


def test_manifest_lists_what_was_not_allowed_and_why(compass):
    code, out, _ = compass("manifest", "-l", "sw", "--excluded", "4")
    assert code == 0
    assert "pool rows were not allowed" in out
    assert "duplicate in pool" in out or "same text as" in out
