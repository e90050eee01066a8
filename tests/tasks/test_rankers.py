"""A ranker from a person's own gains and files, as `compass fit-langrank` trains it."""

from __future__ import annotations

import json

import pytest

from compass_core.errors import ConfigError, DataError
from compass_core.selection.langrank import load_ranker
from tasks.rankers import fit_from_gains, sample_by_language

pytest.importorskip("lightgbm", reason="the optional package lightgbm is not installed")

TARGETS = {"sw": "swh_Latn", "uk": "ukr_Cyrl", "tr": "tur_Latn"}
SOURCES = ("zu", "ru", "kk", "de")


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Three targets and four sources in files, their gains, and a configuration."""
    for role, names, n in (
        ("usage", TARGETS, 30),
        ("coverage", TARGETS, 20),
        ("pool", SOURCES, 40),
    ):
        rows = [
            {
                "id": f"{role}-{name}-{i}",
                "language": name,
                "prompt": f"{name} word{i % 7} asks{i}",
                "response": f"answer{i}",
            }
            for name in names
            for i in range(n)
        ]
        write_rows(tmp_path / f"{role}.jsonl", rows)
    write_rows(
        tmp_path / "test.jsonl",
        [{"id": "t", "language": "sw", "prompt": "q", "choices": ["a", "b"], "answer": 0}],
    )
    (tmp_path / "compass.yaml").write_text(
        "languages: [sw]\ndata:\n"
        + "".join(
            f"  {role}: {{path: {role}.jsonl}}\n" for role in ("usage", "coverage", "pool", "test")
        )
    )
    write_gains(tmp_path, SOURCES)
    return tmp_path


def write_gains(folder, sources):
    pairs = [(t, s, i * 0.1) for t in TARGETS for i, s in enumerate(sources)]
    lines = [f"{t},{s},{gain}" for t, s, gain in pairs]
    (folder / "gains.csv").write_text("\n".join(["target,source,gain", *lines]) + "\n")


def test_a_ranker_is_trained_from_a_file_of_gains_and_the_texts_of_a_configuration(folder):
    facts = fit_from_gains(folder / "gains.csv", folder / "compass.yaml", folder / "ranker", seed=0)
    assert (facts["n_pairs"], facts["n_targets"], facts["trained_on"]) == (12, 3, "gains.csv")
    assert set(facts["ndcg_at_3"]["by_target"]) == set(TARGETS.values())
    assert load_ranker(folder / "ranker").facts == facts
    again = fit_from_gains(folder / "gains.csv", folder / "compass.yaml", folder / "again", seed=0)
    assert again == facts


def test_a_source_that_the_pool_lacks_is_named_before_anything_is_written(folder):
    write_gains(folder, (*SOURCES, "yo"))
    with pytest.raises(DataError, match=r"(?s)^E51 .*source yor_Latn"):
        fit_from_gains(folder / "gains.csv", folder / "compass.yaml", folder / "ranker", seed=0)
    assert not (folder / "ranker").exists()


def test_a_configuration_that_does_not_exist_is_refused(folder):
    with pytest.raises(ConfigError):
        fit_from_gains(folder / "gains.csv", folder / "no.yaml", folder / "ranker", seed=0)


def test_texts_are_sampled_by_key_whatever_the_batches():
    import pyarrow as pa

    rows = [
        {
            "id": f"{i}",
            "language": "eng_Latn" if i % 3 else "deu_Latn",
            "prompt": f"p{i}",
            "response": "",
        }
        for i in range(2_500)
    ]
    whole = pa.Table.from_pylist(rows)
    found = sample_by_language([whole])
    assert (found["eng_Latn"].n_rows, len(found["eng_Latn"].texts)) == (1_666, 1_000)
    assert (found["deu_Latn"].n_rows, len(found["deu_Latn"].texts)) == (834, 834)
    reversed_batches = [whole.slice(i, 100) for i in range(2_400, -1, -100)]
    assert sample_by_language(reversed_batches) == found
