"""Rows by file and id, and which parallel rows an encoder may be fitted on."""

import json

import pytest

from compass_core.errors import DataError
from compass_core.scenarios import DataFolder
from compass_core.scenarios.data import (
    ENCODER_ROWS,
    MAX_ENCODER_ROWS,
    MIN_ENCODER_ROWS,
    encoder_rows,
)

TOY = {"swh_Latn", "eng_Latn", "tur_Latn"}


def test_rows_come_with_canonical_languages_in_file_order(toy_folder, toy_rows):
    rows = DataFolder(toy_folder).rows("toy")
    assert [row.id for row in rows] == [row["id"] for row in toy_rows]
    assert {row.language for row in rows} == TOY


def test_plain_jsonl_is_read_too_and_question_stands_in_for_text(tmp_path):
    row = {"id": 1, "language": "sw", "question": "nini?"}
    (tmp_path / "plain.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = DataFolder(tmp_path).rows("plain")
    assert (found.id, found.text, found.parallel_id) == ("1", "nini?", "")


def test_missing_file_is_refused_with_what_there_is(toy_folder):
    with pytest.raises(DataError, match=r"no other\.jsonl\.gz. It has: toy"):
        DataFolder(toy_folder).rows("other")


def test_line_that_is_no_row_is_named_by_its_number(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "language": "sw", "text": "a"}\n{"id": 2}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        DataFolder(tmp_path).rows("bad")


def test_missing_ids_are_counted_and_named(toy_folder):
    with pytest.raises(DataError, match="2 of 3 usage_ids") as caught:
        DataFolder(toy_folder).find(["toy"], ["toy-sw-1", "ghost", "spectre"], "usage_ids")
    assert "ghost" in str(caught.value)


def test_rows_are_found_in_the_order_of_their_ids(toy_folder):
    wanted = ["toy-tr-5", "toy-sw-1"]
    assert [row.id for row in DataFolder(toy_folder).find(["toy"], wanted, "ids")] == wanted


def test_encoder_rows_share_no_item_with_the_case_and_no_other_language(toy_folder):
    used = {f"p{item}" for item in range(10)}
    found, told = encoder_rows(
        DataFolder(toy_folder), ["toy"], used=used, languages={"swh_Latn", "eng_Latn"}
    )
    assert not used & found.keys()
    assert found.keys() == {f"p{item}" for item in range(10, 80)}  # the test split takes no part
    assert all(texts.keys() == {"swh_Latn", "eng_Latn"} for texts in found.values())
    assert told == ["70 of toy train"]


def test_too_few_free_parallel_rows_are_refused(toy_folder):
    used = {f"p{item}" for item in range(80 - MIN_ENCODER_ROWS + 1)}
    with pytest.raises(DataError, match=f"needs {MIN_ENCODER_ROWS}"):
        encoder_rows(DataFolder(toy_folder), ["toy"], used=used, languages=TOY)


def test_other_files_with_translations_help_out(tmp_path, toy_folder, toy_rows):
    (tmp_path / "toy.jsonl.gz").write_bytes((toy_folder / "toy.jsonl.gz").read_bytes())
    more = [
        row | {"id": f"more-{row['id']}", "parallel_id": f"m{row['parallel_id']}"}
        for row in toy_rows
    ]
    (tmp_path / "tico19.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    used = {f"p{item}" for item in range(70)}
    found, told = encoder_rows(DataFolder(tmp_path), ["toy"], used=used, languages=TOY)
    assert told == ["10 of toy train", "80 of tico19"]
    assert len(found) == 90


def write_pairs(folder, pairs):
    """Write one item per (language, language, count), in that order of ids."""
    lines = []
    for first, second, count in pairs:
        for _ in range(count):
            item = f"p{len(lines):05}"
            for language in (first, second):
                row = {"id": f"{item}-{language}", "language": language, "text": f"x {item}"}
                lines.append(json.dumps(row | {"parallel_id": item, "split": "train"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_items_of_few_languages_are_taken_until_every_language_has_its_texts_on_the_mean(tmp_path):
    write_pairs(tmp_path, [("sw", "en", 2 * ENCODER_ROWS), ("tr", "en", 100)])
    found, told = encoder_rows(DataFolder(tmp_path), ["pairs"], used=(), languages=TOY)
    assert sum(len(texts) for texts in found.values()) == 3 * ENCODER_ROWS
    assert sum("tur_Latn" in texts for texts in found.values()) == 100  # its share comes first
    assert told == [f"{ENCODER_ROWS * 3 // 2} of pairs train"]


def test_no_more_rows_are_taken_than_kernels_can_bear(tmp_path):
    languages = ("sw", "en", "tr", "fr", "de", "es", "it", "pt")
    pairs = [(first, "en", 900) for first in languages if first != "en"]
    write_pairs(tmp_path, pairs)
    data = DataFolder(tmp_path)
    wanted = {row.language for row in data.rows("pairs")}
    found, _ = encoder_rows(data, ["pairs"], used=(), languages=wanted)
    assert len(found) == MAX_ENCODER_ROWS


def test_helping_file_of_few_languages_gives_nothing_to_those_that_have_enough(tmp_path):
    others = ("en", "fr", "de", "es", "it", "pt")
    write_pairs(tmp_path, [("sw", other, 40) for other in others])
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").replace('"p0', '"q0')
    rows = [line for line in lines.splitlines() if '"sw"' in line or '"en"' in line]
    (tmp_path / "tico19.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = DataFolder(tmp_path)
    wanted = {row.language for row in data.rows("pairs")}
    _, told = encoder_rows(data, ["pairs"], used=(), languages=wanted)
    assert told == ["240 of pairs train"]


def test_options_of_a_question_are_part_of_its_text(tmp_path):
    row = {"id": "a", "language": "en", "question": "Which?", "choices": ["A cell", "A star"]}
    (tmp_path / "mcq.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = DataFolder(tmp_path).rows("mcq")
    assert found.text == "Which? A cell A star"


def test_language_with_too_few_translations_is_left_out_and_named(tmp_path):
    write_pairs(tmp_path, [("sw", "en", 70), ("tr", "en", 5)])
    found, told = encoder_rows(DataFolder(tmp_path), ["pairs"], used=(), languages=TOY)
    assert len(found) == 70
    assert told == ["75 of pairs train", "nothing of tur_Latn (too few translations)"]


def test_other_files_help_languages_that_have_hardly_any_translations(tmp_path, toy_rows):
    write_pairs(tmp_path, [("sw", "en", 2 * ENCODER_ROWS), ("tr", "en", 5)])
    (tmp_path / "tico19.jsonl").write_text(
        "".join(
            json.dumps(row | {"parallel_id": f"t{row['parallel_id']}", "id": f"t{row['id']}"})
            + "\n"
            for row in toy_rows
            if row["language"] != "sw"
        ),
        encoding="utf-8",
    )
    found, told = encoder_rows(DataFolder(tmp_path), ["pairs"], used=(), languages=TOY)
    assert told == [f"{ENCODER_ROWS * 3 // 2} of pairs train", "80 of tico19"]
    assert sum("tur_Latn" in texts for texts in found.values()) == 85
