"""A ranker from a person's own gains and files, as `compass fit-langrank` trains it."""

from __future__ import annotations

import json

import pytest

from compass_core import langrank_gains
from compass_core.errors import ConfigError, DataError
from compass_core.langrank_fitting import read_gains
from compass_core.selection.langrank import load_ranker
from tasks.rankers import fit_from_gains, measure_from_config, sample_by_language

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


@pytest.fixture
def trainable(folder):
    """The same with test items of two targets and a training of two steps."""
    items = [
        {
            "id": f"t-{name}-{i}",
            "language": name,
            "prompt": f"item {name} {i}",
            "choices": ["answer1", "answer2"],
            "answer": i % 2,
        }
        for name in ("sw", "uk")
        for i in range(12)
    ]
    write_rows(folder / "test.jsonl", items)
    with (folder / "pool.jsonl").open("a") as pool:
        leak = {"id": "leak", "language": "yo", "prompt": "Item SW 3!", "response": "answer2"}
        pool.write(json.dumps(leak) + "\n")
    text = (folder / "compass.yaml").read_text().replace("[sw]", "[sw, uk]")
    steps = "training: {min_steps: 2, max_steps: 2, batch_size: 4, lora_rank: 2}\n"
    (folder / "compass.yaml").write_text(text + steps)
    return folder


def test_gains_are_measured_source_by_source_and_an_interrupted_measurement_goes_on(
    trainable, monkeypatch
):
    config, out = trainable / "compass.yaml", trainable / "measured.csv"
    assert measure_from_config(config, out, sources=["zu", "de", "ru"], n_rows=8) == 6
    whole = out.read_text()
    lines = whole.splitlines()
    assert lines[0] == "target,source,gain"
    assert [line.rsplit(",", 1)[0] for line in lines[1:3]] == [
        "swh_Latn,deu_Latn",
        "swh_Latn,rus_Cyrl",
    ]
    assert all(-1 <= float(line.split(",")[2]) <= 1 for line in lines[1:])
    out.write_text("\n".join(line for line in lines if "rus_Cyrl" not in line) + "\n")
    trained = []
    original = langrank_gains.train_job
    monkeypatch.setattr(
        langrank_gains, "train_job", lambda spec: trained.append(spec) or original(spec)
    )
    assert measure_from_config(config, out, sources=["zu", "de", "ru"], n_rows=8) == 6
    assert len(trained) == 1
    assert out.read_text() == whole
    assert read_gains(out).values.shape == (6,)


def test_gains_of_other_settings_are_not_mixed(trainable):
    config, out = trainable / "compass.yaml", trainable / "measured.csv"
    out.write_text("target,source,gain\nswh_Latn,zul_Latn,0.1\n")
    with pytest.raises(DataError, match=r"^E44 .*other data or settings"):
        measure_from_config(config, out, sources=["zu"], n_rows=8)


def test_a_source_of_test_items_alone_has_no_rows_to_train_on(trainable):
    with pytest.raises(DataError, match=r"^E51 No rows of yor_Latn"):
        measure_from_config(
            trainable / "compass.yaml", trainable / "m.csv", sources=["yo"], n_rows=8
        )


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
