"""Formats, forms, filters and roles: a person's files become the same rows whatever they are."""

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compass_core.config import CorpusConfig
from compass_core.errors import DataError
from compass_core.reading import corpus_fingerprint, read_corpus
from compass_core.records import EXAMPLE_SCHEMA, table_to_examples

DATA = Path(
    os.environ.get("COMPASS_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)
ROWS = [
    {"id": "a", "language": "sw", "instruction": "Habari?", "output": "Njema", "topic": "salamu"},
    {"id": "b", "language": "sw", "instruction": "2+2?", "output": "4", "topic": "hesabu"},
    {"id": "c", "language": "en", "instruction": "Hello?", "output": "Hi\nthere", "topic": "talk"},
]
COLUMNS = ["id", "language", "instruction", "output", "topic"]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def write_json(path):
    path.write_text(json.dumps(ROWS, indent=1), "utf-8")
    return path


def write_csv(path, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def pack(path, source):
    path.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    return path


def write_saved(path):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


def write_saved_splits(path):
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(path))
    return path


def write_shards(path):
    path.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), path / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[2:]), path / "train-00001-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), path / "test-00000-of-00001.parquet")
    return path


WRITERS = {
    "jsonl": lambda folder: write_jsonl(folder / "rows.jsonl"),
    "jsonl with CRLF": lambda folder: _crlf(write_jsonl(folder / "rows.jsonl")),
    "jsonl with a byte order mark": lambda folder: _bom(write_jsonl(folder / "rows.jsonl")),
    "gzip": lambda folder: pack(folder / "rows.jsonl.gz", write_jsonl(folder / "x.jsonl")),
    "gzip by magic": lambda folder: pack(folder / "rows.jsonl", write_jsonl(folder / "x.jsonl")),
    "json array": lambda folder: write_json(folder / "rows.json"),
    "json lines named json": lambda folder: write_jsonl(folder / "rows.json"),
    "csv": lambda folder: write_csv(folder / "rows.csv"),
    "csv with semicolons": lambda folder: write_csv(folder / "rows.csv", ";"),
    "tsv": lambda folder: write_csv(folder / "rows.tsv", "\t"),
    "parquet": lambda folder: write_parquet(folder / "rows.parquet"),
    "saved dataset": lambda folder: write_saved(folder / "rows"),
}


def _crlf(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return path


def _bom(path):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


def read(path, role="pool", target=None, **settings):
    """Return the examples and notes of a corpus at `path`."""
    config = CorpusConfig(path=path.name, **settings)
    table, notes = read_corpus(config, language=target, role=role, base_folder=path.parent)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    table.validate(full=True)
    return table_to_examples(table), notes


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    examples, _ = read(WRITERS[name](tmp_path))
    assert [e.id for e in examples] == ["a", "b", "c"]
    assert [e.language for e in examples] == ["swh_Latn", "swh_Latn", "eng_Latn"]
    assert [e.prompt for e in examples] == ["Habari?", "2+2?", "Hello?"]
    assert [e.response for e in examples] == ["Njema", "4", "Hi\nthere"]
    assert [e.topic for e in examples] == ["salamu", "hesabu", "talk"]
    assert {e.source.split(".")[0] for e in examples} == {"rows"}


def test_splits_of_a_saved_dataset_dict_are_chosen_and_listed(tmp_path):
    folder = write_saved_splits(tmp_path / "rows")
    assert len(read(folder, split="train")[0]) == 3
    assert len(read(folder, split="test")[0]) == 1
    with pytest.raises(DataError, match=r"E25.*available: train, test"):
        read(folder, split="dev")
    with pytest.raises(DataError, match="E25 split needed"):
        read(folder)


def test_shards_of_a_folder_are_read_in_order_and_chosen_by_split(tmp_path):
    folder = write_shards(tmp_path / "rows")
    assert [e.id for e in read(folder, split="train")[0]] == ["a", "b", "c"]
    assert [e.id for e in read(folder, split="test")[0]] == ["a"]


def test_a_file_per_language_fills_the_placeholder(tmp_path):
    rows = [{"prompt": "Habari?", "response": "Njema"}]
    write_jsonl(tmp_path / "train.sw.jsonl", rows)
    config = CorpusConfig(path="train.{language}.jsonl")
    table, _ = read_corpus(config, language="swh_Latn", role="coverage", base_folder=tmp_path)
    assert table["language"].to_pylist() == ["swh_Latn"]
    with pytest.raises(DataError, match="E15 language needed"):
        read_corpus(config, language=None, role="pool", base_folder=tmp_path)
    with pytest.raises(DataError, match="E01"):
        read_corpus(config, language="yor_Latn", role="usage", base_folder=tmp_path)


# --------------------------------------------------------------------------- forms
def one(tmp_path, row, role="pool", **settings):
    row = {"language": "sw", **row}
    return read(write_jsonl(tmp_path / "one.jsonl", [row]), role, **settings)[0][0]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "ask", "response": "say"},
        {"prompt": "ask", "completion": "say"},
        {"inputs": "ask", "targets": "say"},
        {"question": "ask", "answer": "say"},
        {"query": "ask", "output": "say"},
        {"Prompt": "ask", "Response": "say"},
        {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "ask"}]},
            {"role": "assistant", "content": "say"},
        ]},
    ],
)  # fmt: skip
def test_usual_names_and_forms_are_found(row, tmp_path):
    example = one(tmp_path, row)
    assert (example.prompt, example.response) == ("ask", "say")


def test_an_input_beside_the_instruction_belongs_to_the_prompt(tmp_path):
    row = {"instruction": "Translate", "input": "Habari", "output": "Hello"}
    assert one(tmp_path, row).prompt == "Translate\n\nHabari"
    assert one(tmp_path, {**row, "input": ""}).prompt == "Translate"


def test_a_chat_ends_with_the_last_user_turn_and_its_answer(tmp_path):
    turns = [
        {"role": "system", "content": "S"}, {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"},
        {"role": "assistant", "content": "4"},
    ]  # fmt: skip
    example = one(tmp_path, {"messages": turns})
    assert example.history == (("system", "S"), ("user", "1"), ("assistant", "2"))
    assert (example.prompt, example.response) == ("3", "4")
    usage = one(tmp_path, {"messages": turns[:4]}, "usage")
    assert (usage.prompt, usage.response) == ("3", "")
    unanswered = one(tmp_path, {"messages": turns[:4]})
    assert (unanswered.prompt, unanswered.response) == ("1", "2")


def test_plain_text_is_a_response_to_train_on_and_a_prompt_of_usage(tmp_path):
    assert one(tmp_path, {"text": "maandishi"}).response == "maandishi"
    assert one(tmp_path, {"text": "maandishi"}).prompt == ""
    assert one(tmp_path, {"text": "maandishi"}, "usage").prompt == "maandishi"


@pytest.mark.parametrize("answer", [1, "B", "b", "(B)", "yes", "1", 1.0])
def test_a_right_answer_is_an_index_a_letter_or_the_text(answer, tmp_path):
    row = {"question": "ask", "choices": ["no", "yes"], "answer": answer}
    example = one(tmp_path, row, "test")
    assert example.answer_index == 1
    assert example.response == "yes"
    assert example.choices == ("no", "yes")


def test_options_may_stand_in_columns_of_their_own(tmp_path):
    row = {"question": "ask", "option_a": "x", "option_b": "y", "option_c": None, "answer": "B"}
    for columns in ({}, {"choices": "option_a, option_b,option_c"}):
        example = one(tmp_path, row, "test", columns=columns)
        assert example.choices == ("x", "y")
        assert example.answer_index == 1


def test_templates_and_labels_make_a_choice_task_of_labelled_text(tmp_path):
    settings = {
        "prompt_template": "{text}\n<topic?> = {{",
        "label_choices": ["sports", "health"],
        "columns": {"answer": "topic", "topic": "topic"},
    }
    row = {"text": "Mpira", "topic": "sports"}
    example = one(tmp_path, row, "pool", **settings)
    assert example.prompt == "Mpira\n<topic?> = {"
    assert (example.response, example.choices) == ("sports", ("sports", "health"))
    assert one(tmp_path, row, "usage", **settings).answer_index is None


def test_a_template_letters_a_list_and_cannot_reach_attributes(tmp_path):
    row = {"q": "ask", "choices": ["no", "yes"], "answer": 0}
    example = one(tmp_path, row, "test", prompt_template="{q}\n{choices}")
    assert example.prompt == "ask\nA. no\nB. yes"
    with pytest.raises(DataError, match="E15"):
        one(tmp_path, row, "test", prompt_template="{q.__class__}")


def test_csv_cells_hold_lists_as_json(tmp_path):
    path = tmp_path / "mcq.csv"
    path.write_text('language,question,choices,answer\nsw,ask,"[""no"", ""yes""]",B\n', "utf-8")
    assert read(path, "test")[0][0].choices == ("no", "yes")


def test_a_number_is_a_right_answer_but_not_a_prompt(tmp_path):
    assert one(tmp_path, {"question": "6*3", "answer": 18}, "test").response == "18"
    with pytest.raises(DataError, match=r"E11 not a text: one.jsonl:1 question got 18"):
        one(tmp_path, {"question": 18, "answer": "x"}, "test")


# --------------------------------------------------------------------------- filters
def many(tmp_path, n=100):
    return write_jsonl(
        tmp_path / "many.jsonl",
        [
            {
                "id": i, "language": ["sw", "swh", "Swahili", "en", "zh"][i % 5],
                "prompt": f"ask {i}", "response": "say", "split": "train" if i % 2 else "test",
                "grade": i % 3, "parallel_id": f"p{i // 5}",
            }
            for i in range(n)
        ],
    )  # fmt: skip


def test_rows_are_kept_by_language_however_it_is_written(tmp_path):
    assert len(read(many(tmp_path), "coverage", "swh_Latn")[0]) == 60
    assert len(read(many(tmp_path), "coverage", "cmn_Hans")[0]) == 20
    pool = read(many(tmp_path), exclude_languages=["swahili", "zh"])[0]
    assert {e.language for e in pool} == {"eng_Latn"}


def test_splits_where_and_limit_narrow_the_rows(tmp_path):
    path = many(tmp_path)
    assert len(read(path, split="train")[0]) == 50
    assert len(read(path, where={"grade": 1})[0]) == 33
    assert len(read(path, where={"grade": ["1", "2"]})[0]) == 66
    limited = read(path, limit=3)[0]
    assert len(limited) == 9
    assert [e.id for e in read(path, "coverage", "eng_Latn", limit=2)[0]] == ["3", "8"]


def test_hash_splits_are_disjoint_complete_and_keep_translations_together(tmp_path):
    path = many(tmp_path, 500)
    low, high = read(path, hash_split="0-60")[0], read(path, hash_split="60-100")[0]
    assert len(low) + len(high) == 500
    assert 200 < len(low) < 400
    assert not {e.parallel_id for e in low} & {e.parallel_id for e in high}
    assert read(path, hash_split="0-60")[0] == low


def test_a_language_without_rows_gives_an_empty_table_and_a_note(tmp_path):
    examples, notes = read(many(tmp_path), "coverage", "yor_Latn")
    assert examples == []
    assert any("0 rows in Yoruba (yor_Latn); found swh_Latn 60" in note for note in notes)


def test_a_misspelt_split_lists_those_there_are(tmp_path):
    with pytest.raises(DataError, match=r"E25 no split 'trian'.*'test', 'train'"):
        read(many(tmp_path), split="trian")


def test_a_fixed_language_stands_in_for_a_column(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "ask", "response": "say"}])
    assert read(path, "coverage", "swh_Latn", language="sw")[0][0].language == "swh_Latn"
    assert read(path, "coverage", "swh_Latn", language="en")[0] == []
    with pytest.raises(DataError, match=r"E15 language missing: x\.jsonl has no language column"):
        read(path, "coverage", "swh_Latn")


def test_ids_are_row_numbers_where_there_are_none(tmp_path):
    rows = [{"language": "sw", "text": f"t{i}"} for i in range(3)]
    assert [e.id for e in read(write_jsonl(tmp_path / "x.jsonl", rows))[0]] == [
        "row-1", "row-2", "row-3",
    ]  # fmt: skip


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    rows = [
        {"language": "sw", "prompt": "ask", "response": "say"},
        {"language": "sw", "prompt": "", "response": "say"},
        {"language": "tlhIngan", "prompt": "ask", "response": "say"},
    ]
    examples, notes = read(write_jsonl(tmp_path / "x.jsonl", rows), bad_rows="skip")
    assert len(examples) == 1
    assert any("2 rows skipped (E16 × 1, E43 × 1)" in note for note in notes)


def test_notes_name_unused_columns_and_missing_licences(tmp_path):
    _, notes = read(write_jsonl(tmp_path / "x.jsonl", [{**ROWS[0], "extra": 1}]))
    assert "columns not used: extra" in notes
    assert any("1 of 1 rows have no licence" in note for note in notes)
    _, notes = read(tmp_path / "x.jsonl", licence="CC0-1.0")
    assert not any("licence" in note for note in notes)


# --------------------------------------------------------------------------- identity
def test_the_fingerprint_is_that_of_the_content_not_of_the_packing(tmp_path):
    plain = write_jsonl(tmp_path / "rows.jsonl")
    key = corpus_fingerprint(CorpusConfig(path="rows.jsonl"), tmp_path)
    pack(tmp_path / "rows.jsonl.gz", plain)
    assert corpus_fingerprint(CorpusConfig(path="rows.jsonl.gz"), tmp_path) == key
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    _crlf(write_jsonl(moved / "rows.jsonl"))
    assert corpus_fingerprint(CorpusConfig(path="rows.jsonl"), moved) == key
    assert corpus_fingerprint(CorpusConfig(path="rows.jsonl", limit=1), tmp_path) != key
    plain.write_text(plain.read_text("utf-8").replace("Njema", "njema"), "utf-8")
    assert corpus_fingerprint(CorpusConfig(path="rows.jsonl"), tmp_path) != key


def test_the_fingerprint_of_a_file_per_language_covers_all_of_them(tmp_path):
    config = CorpusConfig(path="train.{language}.jsonl")
    write_jsonl(tmp_path / "train.sw.jsonl")
    one_file = corpus_fingerprint(config, tmp_path)
    write_jsonl(tmp_path / "train.yo.jsonl")
    assert corpus_fingerprint(config, tmp_path) != one_file


def test_reading_twice_gives_equal_tables_and_leaves_the_file_alone(tmp_path):
    path = many(tmp_path)
    before = path.read_bytes()
    assert read(path) == read(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["many.jsonl"]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (COMPASS_TEST_DATA)")
@pytest.mark.parametrize(
    ("name", "role", "rows"),
    [
        ("exams", "test", 20540), ("global_mmlu_lite", "test", 2460), ("xwinograd", "test", 3961),
        ("mgsm", "test", 2250), ("multiq", "usage", 21600), ("vicuna_multilingual", "usage", 960),
        ("xcopa", "test", 4800), ("xquad", "test", 2862), ("lcb_prompts", "usage", 1100),
    ],
)  # fmt: skip
def test_real_files_are_read_without_any_mapping(name, role, rows):
    config = CorpusConfig(path=f"{name}.jsonl.gz")
    table, _ = read_corpus(config, language=None, role=role, base_folder=DATA)
    assert table.num_rows == rows
    assert all(len(code) == 8 for code in table["language"].unique().to_pylist())


# --------------------------------------------------------------------------- hub
def test_a_hub_dataset_is_read_by_id_language_and_revision_without_remote_code(
    tmp_path, monkeypatch
):
    import datasets

    asked = {}

    def load_dataset(path, name, **options):
        asked.update(path=path, name=name, **options)
        return datasets.Dataset.from_list([{"inputs": "ask", "targets": "say"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("compass_core.reading.tables._check_reachable", lambda hub: None)
    config = CorpusConfig(path="org/set", name="{language}", split="dev", revision="abc")
    table, notes = read_corpus(config, language="swh_Latn", role="test", base_folder=tmp_path)
    assert asked == {
        "path": "org/set", "name": "sw", "split": "dev", "revision": "abc",
        "trust_remote_code": False,
    }  # fmt: skip
    assert table["source"].to_pylist() == ["org/set"]
    assert not any("revision" in note for note in notes)


def test_the_fingerprint_of_a_hub_dataset_is_its_id_revision_name_and_split(tmp_path):
    config = CorpusConfig(path="org/set", revision="abc")
    key = corpus_fingerprint(config, tmp_path)
    for change in ({"revision": "abd"}, {"name": "en"}, {"split": "dev"}, {"path": "org/set2"}):
        assert corpus_fingerprint(config.model_copy(update=change), tmp_path) != key
