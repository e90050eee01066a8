"""What a cleaning leaves: the space that usage is watched in, with its parts, and nothing older."""

import os

import pytest

from compass_core.errors import StoreError
from compass_core.storage import write_text
from tasks.retention import apply_clean, keep_space, plan_clean
from tasks.settings import open_store, runs_folder, usage_folder

LANGUAGE = "swh_Latn"


def make_artefact(kind, name, parts=()):
    """Return an artefact of one small file that points to its parts."""
    store = open_store()
    provenance = {"parts": [part.path for part in parts]}
    with store.build(kind, name, provenance) as draft:
        write_text(draft.folder / "space.json", f"{kind} {name}")
    return store.put(kind, name, draft)


def make_space(name):
    parts = [make_artefact(kind, name) for kind in ("fit", "assign")]
    return [make_artefact("cluster", name, parts), *parts]


def folders(refs):
    return {open_store().root / ref.path for ref in refs}


def test_the_space_that_usage_is_watched_in_stays_with_its_parts(home):
    older, watched, other = (make_space(name) for name in ("a", "b", "c"))
    keep_space(LANGUAGE, older[0])
    keep_space(LANGUAGE, watched[0])
    plan = plan_clean(keep_runs=0)
    assert set(plan.artefacts) == folders([*older, *other])
    apply_clean(plan)
    assert all(folder.is_dir() for folder in folders(watched))
    assert plan_clean(keep_runs=0).artefacts == []


def test_each_language_keeps_its_own_space(home):
    spaces = {"swh_Latn": make_space("a"), "tur_Latn": make_space("b")}
    for language, (space, *_parts) in spaces.items():
        keep_space(language, space)
    assert plan_clean(keep_runs=0).artefacts == []


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_nothing_is_deleted_while_a_watched_space_is_unknown(home, text):
    make_space("a")
    write_text(usage_folder(LANGUAGE) / "space.json", text)
    with pytest.raises(StoreError, match="compass monitor"):
        plan_clean(keep_runs=0)


def test_work_of_a_run_without_a_record_yet_stays(home):
    before = make_artefact("adapter-train", "a")
    os.utime(open_store().root / before.path / "MANIFEST.json", (1, 1))
    begun = runs_folder() / "20260101T000000-abcdef"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("{}")
    os.utime(begun / "config.yaml", (1000, 1000))
    make_artefact("adapter-train", "b")
    assert set(plan_clean(keep_runs=1).artefacts) == folders([before])
    (begun / "run.json").write_text("{}")
    assert len(plan_clean(keep_runs=1).artefacts) == 2
