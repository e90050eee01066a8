"""A made-up data folder: three languages, parallel rows of four topics, no download."""

import gzip
import json

import numpy as np
import pytest

LANGUAGES = ("sw", "en", "tr")
TOPICS = ("north", "south", "east", "west")
N_TRAIN, N_TEST = 80, 40
BUDGET = 24


def make_words(language):
    """Return per topic 12 words of this language; no two languages share any."""
    rng = np.random.default_rng([7, LANGUAGES.index(language)])
    letters = {"sw": "aeioukmwnz", "en": "bcdfghjrst", "tr": "çğıöşülpvy"}[language]
    return {topic: ["".join(rng.choice(list(letters), 6)) for _ in range(12)] for topic in TOPICS}


def make_rows():
    """Return rows of the data's schema; the words of an item are the same in all languages."""
    words = {language: make_words(language) for language in LANGUAGES}
    rng = np.random.default_rng(0)
    rows = []
    for item in range(N_TRAIN + N_TEST):
        topic = TOPICS[item % len(TOPICS)]
        chosen = rng.choice(12, 6)
        for language in LANGUAGES:
            rows.append(
                {
                    "id": f"toy-{language}-{item}",
                    "language": language,
                    "text": " ".join(words[language][topic][i] for i in chosen),
                    "topic": topic,
                    "split": "train" if item < N_TRAIN else "test",
                    "parallel_id": f"p{item}",
                }
            )
    return rows


def make_case(rows, **changes):
    """Return a coverage-gap case in sw: of north and south nothing is covered."""
    own = [row for row in rows if row["language"] == "sw"]
    # Few existing rows: the encoder may use none of their translations.
    existing = [row for row in own if row["split"] == "train" and row["topic"] in ("east", "west")]
    return {
        "name": "toy-gap",
        "kind": "coverage_gap",
        "files": ["toy"],
        "target_language": "sw",
        "existing_ids": [row["id"] for row in existing[:12]],
        "usage_ids": [row["id"] for row in own if row["split"] == "test"],
        "pool": {"file": "toy", "languages": "all but the target", "split": "train"},
        "expected": {"gap_topics": ["north", "south"]},
        "settings": {"budget": BUDGET},
    } | changes


@pytest.fixture(scope="session")
def toy_rows():
    return make_rows()


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory, toy_rows):
    """``toy.jsonl.gz`` and ``scenarios.json``."""
    folder = tmp_path_factory.mktemp("toy-data")
    with gzip.open(folder / "toy.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in toy_rows)
    (folder / "scenarios.json").write_text(json.dumps([make_case(toy_rows)]), encoding="utf-8")
    return folder


@pytest.fixture
def toy_case(tmp_path, toy_rows):
    """Return a function that reads the case with changes."""
    from compass_core.scenarios import read_cases

    def read(**changes):
        path = tmp_path / "case.json"
        path.write_text(json.dumps([make_case(toy_rows, **changes)]), encoding="utf-8")
        return read_cases(path)[0]

    return read
