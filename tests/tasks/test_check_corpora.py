"""Corpora of one language against each other: what is refused, what is only told."""

import pytest

from compass_core.errors import DataError
from compass_core.records import Example, examples_to_table
from compass_core.storage import read_json, write_table
from tasks.ingestion import check_corpora
from tasks.settings import open_store

SENTENCES = (
    "The market on the northern shore opens before the first ferry has crossed the strait.",
    "Nobody had told the engineers that the old bridge was built on a bed of soft clay.",
    "Heavy rain in the mountains fills the reservoirs that feed the villages below them.",
    "The museum keeps a copy of the oldest printed map of the island and its harbours.",
)


def corpus(name, texts, language="swh_Latn"):
    """Store rows as `ingest` would, and return their reference."""
    examples = [
        Example(id=f"{name}-{i}", language=language, prompt=text, response=f"answer {i}")
        for i, text in enumerate(texts)
    ]
    store = open_store()
    with store.build("ingest", name, {}) as draft:
        draft.rows = len(examples)
        write_table(draft.folder / "rows.parquet", examples_to_table(examples))
    return store.put("ingest", name, draft)


def notes_of(**texts):
    refs = {role: corpus(role, rows) for role, rows in texts.items()}
    pool = corpus("pool", ["A row of another language."], "tur_Latn")
    found = check_corpora(language="swh_Latn", pool=[pool], **refs)
    return read_json(open_store().root / found.path / "notes.json")


pytestmark = pytest.mark.usefixtures("home")


def test_coverage_that_resembles_a_test_item_is_told_by_id():
    edited = SENTENCES[0].replace("northern", "southern")
    notes = notes_of(usage=["Where is the ferry?"], coverage=[edited], test=SENTENCES)
    (told,) = [note for note in notes if "resemble" in note]
    assert "1 of 1 coverage examples resemble test items" in told
    assert "coverage-0" in told
    assert "test-0" in told


def test_coverage_of_its_own_is_not_told():
    own = ["Bees find their way home by the angle of the light, even under a cloudy sky."]
    notes = notes_of(usage=["Where is the ferry?"], coverage=own, test=SENTENCES)
    assert not [note for note in notes if "resemble" in note]


def test_coverage_that_is_a_test_item_is_refused():
    with pytest.raises(DataError, match=r"E47 .*coverage"):
        notes_of(usage=["Where is the ferry?"], coverage=[SENTENCES[0]], test=SENTENCES)
