"""Configuration files: strict YAML, typed overrides, every problem in one message."""

import contextlib
import itertools
import math
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.config import AdaptConfig, FilesData, StudyConfig, UsageLogConfig
from compass_core.config_files import dump_config, load_config
from compass_core.errors import CompassError, ConfigError, LanguageError
from compass_core.languages import canonical_language
from compass_core.strict_yaml import dump_yaml, parse_yaml, scalar

FILES = """
languages: [sw]
data:
  kind: files
  usage: {path: usage.jsonl}
  pool: {path: org/pool}
  test: {path: sub/test.csv}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def refusal(path, *overrides, kind=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, kind)
    message = str(caught.value)
    assert message.startswith(caught.value.code)
    assert len(message) < 8_000
    return message


def test_a_file_and_its_overrides_become_one_configuration(write):
    path = write("languages: [sw, yo]\ntraining: {learning_rate: 1e-4, lora_rank: 8}\n")
    config = load_config(path, ["training.lora_rank=4", "selection.budget=50", "seed=3"])
    assert config.languages == ("swh_Latn", "yor_Latn")
    assert config.training.learning_rate == pytest.approx(1e-4)
    assert (config.training.lora_rank, config.selection.budget, config.seed) == (4, 50, 3)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=.5", 0.5),
        ("clustering.n_clusters=20", (20,)),
        ("clustering.n_clusters=20, 40", (20, 40)),
        ("clustering.n_clusters=[20, 40]", (20, 40)),
        ("languages=no,sw", ("nob_Latn", "swh_Latn")),
        ("baselines=random", ("random",)),
        ("baselines=", ()),
        ("selection.licences=CC0-1.0,MIT", ("CC0-1.0", "MIT")),
        ("embedding.prefix=query: ", "query:"),
        ("base.revision=1234567", "1234567"),
        ("base.revision=no", "no"),
        ("embedding.centre_languages=yes", True),
        ("embedding.centre_languages=on", True),
        ("clustering.script_guard=off", "off"),
        ("project=1e4", "1e4"),
        ("data.n_usage=12", 12),
    ],
)
def test_an_override_takes_the_type_of_its_field(override, value, write):
    config = load_config(write("languages: [sw]\n"), [override])
    found = config
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == pytest.approx(value) if isinstance(value, float) else found == value


def test_every_problem_is_reported_at_once_with_key_line_and_advice(write):
    path = write(
        "languages: [xx, sw]\n"
        "selection:\n"
        "  bugdet: 3\n"
        "  smoothing: 0\n"
        "leanring_rate: 1\n"
        "learning_rate: 1\n"
        "training: {lora_rank: 012, lora_alpha: .inf}\n"
    )
    message = refusal(path, "seed=-1", "selction.budget=3", "budget", "selection.drw=nearest")
    for expected in (
        "cannot be used:",
        "E41 selection.bugdet: unknown key, did you mean budget? (line 3)",
        "E42 selection.smoothing: Input should be greater than 0 (got 0, line 4)",
        "E41 leanring_rate: unknown key",
        "E41 learning_rate: unknown key; it belongs under training (line 6)",
        "E42 training.lora_rank: 012 starts with a zero (octal in YAML); write 12 (line 7)",
        "E42 training.lora_alpha: .inf is not a finite number (line 7)",
        "E43 languages: [0] E43 'xx' is not a known language",
        "E42 seed: Input should be greater than or equal to 0 (got -1, override)",
        "E41 selction: unknown key, did you mean selection? (override)",
        "E42 override 'budget': write key=value",
        "E41 selection.drw: unknown key, did you mean draw? (override)",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("languages: [no, en]", 'E36 languages: [0] is a boolean; quote it: "no" (line 1)'),
        ("languages: [sw]\nseed: 1\nseed: 2", "E37 seed: key given twice, in lines 2 and 3"),
        ("languages: [sw]\nbase: {model: a, model: b}", "E37 base.model: key given twice"),
        ("languages: !!python/object/apply:os.system [ls]", "E38 run.yaml:1: tags are not allowed"),
        ("languages: !!str sw", "E38 run.yaml:1: tags are not allowed"),
        ("a: &x [sw]\nlanguages: *x", "E39 run.yaml:1: aliases and anchors are not allowed"),
        ("a: " + "[" * 3000 + "]" * 3000, "E39 run.yaml:1: depth > 32"),
        ("a: " + "x" * 2**20, "E39 run.yaml is larger than 1 MB"),
        ("", "E40 run.yaml is empty"),
        ("# only a comment\n", "E40 run.yaml is empty"),
        ("- sw\n- yo\n", "E40 run.yaml holds a list at the top"),
        ("sw", "E40 run.yaml holds a single value at the top"),
        ("languages: [sw", "E42 run.yaml:1:"),
        ("languages:\n\t- sw", "not valid YAML"),
        ("languages: [sw]\n---\nseed: 1", "E42 run.yaml:2: a second document"),
        ("? [a]\n: b\nlanguages: [sw]", "E42 line 1: a key must be a word"),
        (b"\xff\xfel", "E05 run.yaml:1 is not UTF-8"),
        ("languages: []", "E42 languages"),
        ("seed: 1", "E42 languages: needed but not given"),
        ("languages: [sw, swh]", "swh_Latn is named twice"),
        ("languages: [sw]\nembedding: {revision: 1234567}", "E42 embedding.revision: must be text"),
        ("languages: [sw]\ndata: {kind: fles}", "say `kind: starter` or `kind: files`"),
        ("languages: [sw]\ndata: {n_usge: 3}", "E41 data.n_usge: unknown key, did you mean"),
        ("languages: [sw]\ntraining: {learning_rate: -1}", "E42 training.learning_rate"),
        ("languages: [sw]\ntraining: {learning_rate: .nan}", "not a finite number"),
        ("languages: [sw]\nselection: {budget: -5}", "E42 selection.budget"),
        ("languages: [sw]\nselection: {budget: 2.5}", "E42 selection.budget"),
        ("languages: [sw]\ntraining: [1]", "E42 training"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why(text, message, write):
    started = time.monotonic()
    assert message in refusal(write(text))
    assert time.monotonic() - started < 2


def test_the_reference_error_says_what_a_corpus_needs(write):
    message = refusal(
        write("languages: [sw]\ndata: {kind: files, usage: {path: a}, tset: {path: b}}")
    )
    assert "E42 data.pool: needed but not given" in message
    assert "E42 data.test: needed but not given" in message
    assert "E41 data.tset: unknown key, did you mean test?" in message


def test_a_missing_file_lists_its_neighbours(write, tmp_path):
    write("languages: [sw]", "starter.yaml")
    assert "did you mean starter.yaml?" in refusal(tmp_path / "startre.yaml")
    assert refusal(tmp_path).startswith("E02")


# --------------------------------------------------------------------------- paths
def test_relative_paths_start_from_the_file_wherever_it_is_run_from(write, tmp_path, monkeypatch):
    path = write(FILES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = load_config(path).data
    assert isinstance(data, FilesData)
    assert data.usage.path == str(tmp_path / "usage.jsonl")
    assert data.test.path == str(tmp_path / "sub" / "test.csv")
    assert data.pool.path == "org/pool"


def test_a_path_typed_as_an_override_starts_from_the_current_folder(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = load_config(write(FILES), ["data.usage.path=mine.jsonl"]).data
    assert data.usage.path == str(elsewhere / "mine.jsonl")


def test_environment_variables_are_filled_in_paths_alone(write, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(tmp_path / "data"))
    text = FILES.replace("usage.jsonl", '"${MY_DATA}/u.jsonl"') + 'project: "x"\n'
    config = load_config(write(text))
    assert config.data.usage.path == str(tmp_path / "data" / "u.jsonl")
    monkeypatch.delenv("MY_DATA")
    message = refusal(write(text))
    assert "E42 data.usage.path: the environment variable MY_DATA is not set (line 5)" in message
    assert load_config(write('languages: [sw]\nembedding: {prefix: "${MY_DATA}"}')).embedding.prefix


def test_models_beside_the_file_become_absolute_and_hub_ids_stay(write, tmp_path):
    (tmp_path / "base").mkdir()
    text = "languages: [sw]\nbase: {model: base}\nembedding: {encoder: org/encoder}\n"
    config = load_config(write(text))
    assert config.base.model == str(tmp_path / "base")
    assert config.embedding.encoder == "org/encoder"
    assert load_config(write("languages: [sw]")).base.model == "starter"


# --------------------------------------------------------------------------- round trips
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["project=1e4", "embedding.prefix=no", "base.revision=012", "training.learning_rate=1e-05"],
        ["baselines=random,english", "embedding.revision=~", "base.revision=.inf"],
    ],
)
def test_a_dumped_configuration_loads_back_equal(overrides, write):
    config = load_config(write("languages: [sw]\n"), overrides)
    assert load_config(write(dump_config(config), "again.yaml")) == config


def test_a_files_configuration_loads_back_equal(write):
    text = FILES + 'baselines: [random]\nembedding: {prefix: "a: b\\n# c"}\n'
    overrides = ["data.pool.where.grade=12", "data.pool.prompt_template={a}\n{b}: x"]
    config = load_config(write(text), overrides)
    assert config.data.pool.where == {"grade": 12}
    assert load_config(write(dump_config(config), "again.yaml")) == config


def test_off_is_a_word_and_no_is_a_boolean(write):
    text = "languages: [sw]\nclustering: {script_guard: off}\nembedding: {centre_languages: no}\n"
    config = load_config(write(text))
    assert config.clustering.script_guard == "off"
    assert config.embedding.centre_languages is False


def test_other_models_can_be_loaded(write):
    study = load_config(
        write("languages: [sw]\nseeds: [1, 2]\n"), ["strategies=random"], StudyConfig
    )
    assert (study.seeds, study.strategies) == ((1, 2), ("random",))
    assert "E41 seeds: unknown key" in refusal(write("languages: [sw]\nseeds: [1]\n"))
    assert isinstance(load_config(write("languages: [sw]"), (), AdaptConfig), AdaptConfig)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.text(max_size=6), PLAIN, min_size=1, max_size=4))
def test_whatever_is_dumped_is_read_back_unchanged(values):
    document = parse_yaml(dump_yaml(values), "x")
    assert document.problems == []
    assert document.values == values


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=60) | st.text("[]{}:,-&*!?|>#'\"% \n\tab01.", max_size=60))
def test_any_text_is_a_document_or_a_clear_error(text):
    try:
        document = parse_yaml(text, "x")
    except CompassError:
        return
    assert isinstance(document.values, dict)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_reads_as_itself(value):
    assert math.isclose(scalar(repr(value)), value)


def test_the_place_of_a_usage_log_starts_from_the_file_and_is_never_a_hub_id(write, tmp_path):
    path = write(
        "languages: [sw]\nmonitoring:\n  log: {path: logs/usage, database: usage.duckdb}\n"
    )
    log = load_config(path).monitoring.log
    assert log.path == str(tmp_path / "logs" / "usage")
    assert log.database == str(tmp_path / "usage.duckdb")
    remote = ["monitoring.log.database_type=postgres", "monitoring.log.database=host=db user=me"]
    assert load_config(path, remote).monitoring.log.database == "host=db user=me"


@pytest.mark.parametrize(
    "address",
    [
        "host=db user=me password=hunter2",
        "user=me PASSWD = hunter2",
        "postgres://me:hunter2@db/app",
        "postgresql://db/app?user=me&password=hunter2",
        "mysql://:hun/ter2@db",
    ],
)
def test_a_password_in_the_configuration_is_refused_and_not_repeated(write, address):
    path = write("languages: [sw]\n")
    overrides = ["monitoring.log.database_type=postgres", f"monitoring.log.database={address}"]
    with pytest.raises(ConfigError, match=r"holds a password.*write env:NAME") as caught:
        load_config(path, overrides)
    assert "ter2" not in str(caught.value)
    with pytest.raises(ValueError, match="holds a password") as refused:
        UsageLogConfig(database=address)
    assert "ter2" not in str(refused.value)


@pytest.mark.parametrize("kind", ["duckdb", "postgres"])
def test_a_database_in_the_environment_stays_there(write, kind, monkeypatch):
    monkeypatch.setenv("USAGE_LOG", "postgres://me:hunter2@db/app")
    path = write(
        "languages: [sw]\nmonitoring:\n"
        f"  log: {{database: 'env:USAGE_LOG', database_type: {kind}}}\n"
    )
    config = load_config(path)
    assert config.monitoring.log.database == "env:USAGE_LOG"
    assert "hunter2" not in dump_config(config)


def test_a_level_that_no_permutation_can_reach_is_refused(write):
    path = write("languages: [sw]\nmonitoring: {log: {path: l}, drift: {over_time: spending}}\n")
    assert "monitoring.drift.max_permutations to 72999 or more" in refusal(path)
    config = load_config(path, ["monitoring.drift.max_permutations=72999"])
    assert config.monitoring.drift.over_time == "spending"


def codes(n):
    """Return the first `n` languages that have a code of two letters."""
    found = []
    for letters in itertools.product(string.ascii_lowercase, repeat=2):
        with contextlib.suppress(LanguageError):
            found.append(canonical_language("".join(letters)))
    return list(dict.fromkeys(found))[:n]


def watched(languages, **drift):
    monitoring = {"log": {"path": "logs"}, "drift": drift}
    return AdaptConfig.model_validate({"languages": languages, "monitoring": monitoring})


@pytest.mark.parametrize("n_languages", [1, 42, 100])
def test_the_default_level_is_within_reach_of_many_languages(n_languages):
    assert len(watched(codes(n_languages)).languages) == n_languages


def test_a_level_shared_by_too_many_languages_says_what_to_raise():
    with pytest.raises(ValueError, match=r"101 languages.*max_permutations to 20199 or more"):
        watched(codes(101))
    for drift in ({"max_permutations": 20_199}, {"correct_languages": False}, {"alpha": 0.02}):
        watched(codes(101), **drift)


def test_languages_that_nobody_watches_need_no_level():
    assert len(AdaptConfig(languages=codes(101)).languages) == 101


def test_a_level_spent_over_the_year_is_shared_by_the_languages_too():
    with pytest.raises(ValueError, match=r"2 languages / 365 checks_per_year.* 145999 or more"):
        watched(["sw", "tr"], over_time="spending", max_permutations=72_999)
