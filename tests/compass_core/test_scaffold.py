"""`compass init` looks at files and writes a configuration that loads, or says what is missing."""

import json

import pytest

from compass_core.config_files import load_config
from compass_core.errors import CompassError, DataError
from compass_core.reading import read_corpus
from compass_core.scaffold import inspect_corpus, make_config


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    """Four files, each of one role."""

    def rows(n, language, **columns):
        return [
            {"id": f"{language}-{i}", "language": language}
            | {name: text.format(i) for name, text in columns.items()}
            for i in range(n)
        ]

    mcq = [
        {"language": "sw", "question": f"q{i}", "choices": ["a1", "b1"], "answer": i % 2}
        for i in range(120)
    ]
    return {
        "usage": write(tmp_path / "usage.jsonl", rows(200, "sw", text="ombi {}")),
        "coverage": write(
            tmp_path / "have.jsonl", rows(150, "sw", instruction="swali {}", output="jibu {}")
        ),
        "pool": write(
            tmp_path / "pool.jsonl",
            rows(300, "en", instruction="ask {}", output="say {}")
            + rows(200, "yo", instruction="bi {}", output="so {}"),
        ),
        "test": write(tmp_path / "test.jsonl", mcq),
    }  # fmt: skip


def test_a_corpus_is_described_as_it_is(files):
    report = inspect_corpus(files["pool"])
    assert (report.format, report.rows, report.suggested_role) == ("jsonl", 500, "pool")
    assert report.languages == {"eng_Latn": 300, "yor_Latn": 200}
    assert report.mapping["prompt"] == "instruction"
    assert report.mapping["response"] == "output"
    assert inspect_corpus(files["test"]).suggested_role == "test"
    assert inspect_corpus(files["test"]).mapping["choices"] == "choices"


def test_a_written_configuration_loads_and_reads_the_files(files, tmp_path):
    text = make_config(files, ["Swahili"], folder=tmp_path)
    assert text.startswith("# Written by `compass init`")
    assert "eng_Latn 300, yor_Latn 200" in text
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8")
    config = load_config(path)
    assert config.languages == ("swh_Latn",)
    assert config.selection.budget == 100
    assert config.clustering.n_clusters == (10, 20, 40)
    assert config.embedding.prefix == "query: "
    counts = {}
    for role in files:
        corpus = getattr(config.data, role)
        language = None if role == "pool" else "swh_Latn"
        table, _ = read_corpus(corpus, language=language, role=role, base_folder=tmp_path)
        counts[role] = table.num_rows
    assert counts == {"usage": 200, "coverage": 150, "pool": 500, "test": 120}


def test_paths_are_relative_to_where_the_file_will_be(files, tmp_path):
    (tmp_path / "configs").mkdir()
    text = make_config(files, ["sw"], folder=tmp_path / "configs", base="starter")
    assert "path: ../usage.jsonl" in text
    assert "model: starter" in text
    path = tmp_path / "configs" / "run.yaml"
    path.write_text(text, "utf-8")
    assert load_config(path).data.usage.path == str(files["usage"])


def test_one_file_without_splits_serves_all_roles_by_hash(files, tmp_path):
    rows = [json.loads(line) for line in files["test"].read_text("utf-8").splitlines()]
    rows += [{**row, "language": "en", "question": f"{row['question']} en"} for row in rows]
    path = write(tmp_path / "all.jsonl", rows)
    roles = dict.fromkeys(("usage", "coverage", "pool", "test"), path)
    config_path = tmp_path / "run.yaml"
    config_path.write_text(make_config(roles, ["sw"], folder=tmp_path), "utf-8")
    data = load_config(config_path).data
    assert (data.coverage.hash_split, data.usage.hash_split) == ("0-70", "70-80")
    assert data.test.hash_split == "80-100"


def test_everything_that_is_missing_is_said_at_once(files, tmp_path):
    with pytest.raises(CompassError, match="no file for pool, test - give --pool FILE --test FILE"):
        make_config({"usage": files["usage"]}, ["sw"])
    with pytest.raises(CompassError, match="E43"):
        make_config(files, [""])
    with pytest.raises(DataError) as caught:
        make_config({**files, "pool": files["coverage"]}, ["sw", "yo"], folder=tmp_path)
    message = str(caught.value)
    assert "E51 no rows in Yoruba (yor_Latn); found swh_Latn 200" in message
    assert "E51 only swh_Latn 150; add other languages" in message


def test_a_file_that_fits_no_role_is_refused_with_its_columns(files, tmp_path):
    odd = write(tmp_path / "odd.jsonl", [{"language": "sw", "a": "x"}])
    with pytest.raises(DataError, match=r"E15 .*columns found: language, a"):
        make_config({**files, "usage": odd}, ["sw"])
