"""Parts of an embedding: shared by workers, killed and resumed, damaged and rebuilt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compass_core.embedding_parts import (
    assemble_parts,
    make_parts,
    missing_parts,
    part_precisions,
    plan_parts,
    read_texts,
    sweep_parts,
)
from compass_core.storage import file_lock, read_json, write_json

TEXTS = [f"text {n % 35}" for n in range(50)]


def write_rows(path, texts, row_group_size=7):
    """Write texts as prompts, every third as the response of a row without a prompt."""
    prompts = ["" if n % 3 == 0 else text for n, text in enumerate(texts)]
    responses = [text if n % 3 == 0 else "an answer" for n, text in enumerate(texts)]
    table = pa.table({"prompt": prompts, "response": responses})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def vector(text):
    return np.array([zlib.crc32(text.encode()), len(text), 1.0], dtype=np.float32)


def vectors_of(texts):
    return np.array([vector(text) for text in texts], dtype=np.float32).reshape(len(texts), 3)


def encode(texts, rows):
    return vectors_of(texts)


@pytest.fixture
def plan(tmp_path):
    """Fifty rows of 35 distinct texts: five parts of eight, the last of three."""
    rows = write_rows(tmp_path / "rows.parquet", TEXTS)
    return plan_parts(tmp_path / "parts", rows, "recipe", 8)


def assembled(plan):
    target = plan.folder / "vectors.npy"
    assert assemble_parts(plan, target) == []
    return np.load(target, allow_pickle=False)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.text(min_size=1, max_size=3).filter(str.isprintable), min_size=1, max_size=40
    ),
    part_rows=st.integers(1, 12),
    row_group_size=st.integers(1, 12),
)
def test_parts_together_equal_the_whole(tmp_path, texts, part_rows, row_group_size):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    rows = write_rows(folder / "rows.parquet", texts, row_group_size)
    plan = plan_parts(folder / "parts", rows, "recipe", part_rows)
    seen = []

    def encode_once(distinct, numbers):
        seen.extend(distinct)
        assert [texts[number] for number in numbers] == distinct
        return vectors_of(distinct)

    make_parts(plan, encode_once, "float32")
    assert (assembled(plan) == vectors_of(texts)).all()
    assert seen == list(dict.fromkeys(texts))


def test_plan_counts_rows_texts_and_parts(plan):
    assert (plan.n_rows, plan.n_distinct, plan.n_parts) == (50, 35, 5)
    assert [plan.size(part) for part in range(5)] == [8, 8, 8, 8, 3]
    assert missing_parts(plan) == [0, 1, 2, 3, 4]


def test_texts_are_read_by_row_from_any_place(plan):
    for numbers in ([0], [49], [6, 7], [3, 20, 21, 48], list(range(50))):
        assert read_texts(plan.rows, np.array(numbers)) == [TEXTS[number] for number in numbers]


def test_finished_parts_are_not_made_again(plan):
    made = []

    def stop_at_third(texts, rows):
        made.append(rows[0])
        if len(made) == 3:
            raise KeyboardInterrupt
        return vectors_of(texts)

    with pytest.raises(KeyboardInterrupt):
        make_parts(plan, stop_at_third, "float32")
    assert missing_parts(plan) == [2, 3, 4]
    assert make_parts(plan, encode, "bfloat16") == 3
    assert (assembled(plan) == vectors_of(TEXTS)).all()
    assert part_precisions(plan) == ["bfloat16", "float32"]


def damage_bytes(plan):
    path = plan.vectors_path(2)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut_in_half(plan):
    path = plan.vectors_path(2)
    path.write_bytes(path.read_bytes()[:150])


def empty_it(plan):
    plan.vectors_path(2).write_bytes(b"")


def lose_vectors(plan):
    plan.vectors_path(2).unlink()


def lose_record(plan):
    plan.record_path(2).unlink()


def tear_record(plan):
    plan.record_path(2).write_text('{"recipe": "rec')


def exchange_for_a_neighbour(plan):
    plan.vectors_path(2).write_bytes(plan.vectors_path(1).read_bytes())


def come_of_another_recipe(plan):
    record = read_json(plan.record_path(2))
    write_json(plan.record_path(2), record | {"recipe": "another encoder"})


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        cut_in_half,
        empty_it,
        lose_vectors,
        lose_record,
        tear_record,
        exchange_for_a_neighbour,
        come_of_another_recipe,
    ],
)
def test_damaged_part_is_found_rebuilt_and_never_used(damage, plan):
    make_parts(plan, encode, "float32")
    damage(plan)
    target = plan.folder / "vectors.npy"
    assert assemble_parts(plan, target) == [2]
    assert not target.exists()
    assert missing_parts(plan) == [2]
    assert make_parts(plan, encode, "float32") == 1
    assert (assembled(plan) == vectors_of(TEXTS)).all()


def test_vectors_of_two_lengths_come_of_two_encoders_and_all_are_made_again(plan):
    make_parts(plan, encode, "float32", may_go_on=iter([True, True, False, False, False]).__next__)
    make_parts(plan, lambda texts, rows: np.ones((len(texts), 4), np.float32), "float32")
    assert assemble_parts(plan, plan.folder / "vectors.npy") == [0, 1, 2, 3, 4]
    make_parts(plan, encode, "float32")
    assert (assembled(plan) == vectors_of(TEXTS)).all()


def test_part_that_cannot_be_made_leaves_no_trace(plan):
    def fill_the_disk(texts, rows):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        make_parts(plan, fill_the_disk, "float32")
    assert not list(plan.folder.glob("part-*.npy"))
    assert make_parts(plan, encode, "float32") == 5


def test_part_claimed_by_somebody_else_is_left_to_them(plan):
    with file_lock(plan.folder / "part-00001.lock"):
        assert make_parts(plan, encode, "float32") == 4
        assert missing_parts(plan) == [1]
    assert make_parts(plan, encode, "float32") == 1


def test_workers_share_the_parts_without_making_any_twice(plan):
    made = []

    def encode_slowly(texts, rows):
        time.sleep(0.02)
        made.append(int(rows[0]))
        return vectors_of(texts)

    workers = [
        threading.Thread(target=make_parts, args=(plan, encode_slowly, "float32")) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(made) == [0, 8, 16, 24, 32]
    assert (assembled(plan) == vectors_of(TEXTS)).all()


def test_stop_leaves_the_remaining_parts(plan):
    assert make_parts(plan, encode, "float32", may_go_on=iter([True] + [False] * 4).__next__) == 1
    assert missing_parts(plan) == [1, 2, 3, 4]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_embedding_parts as t

folder = Path(sys.argv[2])
plan = t.plan_parts(folder / "parts", folder / "rows.parquet", "recipe", 8)

def encode(texts, rows):
    if rows[0] >= 16:
        (folder / "half-way").touch()
        time.sleep(60)
    return t.vectors_of(texts)

t.make_parts(plan, encode, "float32")
"""


def test_kill_9_in_the_middle_costs_only_the_part_in_progress(plan, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not (tmp_path / "half-way").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = plan_parts(plan.folder, plan.rows, "recipe", 8)
    assert missing_parts(again) == [2, 3, 4]
    assert make_parts(again, encode, "float32") == 3
    assert (assembled(again) == vectors_of(TEXTS)).all()


def test_sweep_takes_what_was_abandoned_and_nothing_else(tmp_path):
    for name in ("fresh", "old", "old-but-alive", "old-with-a-fresh-part"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "alive.lock").touch()
        (folder / "part-00000.npy").write_bytes(b"1")
        if name.startswith("old"):
            for path in (folder / "alive.lock", folder / "part-00000.npy", folder):
                os.utime(path, (0, 0))
    (tmp_path / "old-with-a-fresh-part" / "part-00001.npy").touch()
    with file_lock(tmp_path / "old-but-alive" / "alive.lock"):
        assert sweep_parts(tmp_path) == 1
    assert not (tmp_path / "old").exists()
    assert len(list(tmp_path.iterdir())) == 3
    assert sweep_parts(tmp_path / "nowhere") == 0
