"""An embedding made in parts, each kept on disk until the whole is assembled.

    <folder>/place.npy  first.npy     which distinct text each row has; the first row of each text
    <folder>/part-00000.npy  .json    vectors of `part_rows` distinct texts; record, written last

Equal texts of a corpus are one distinct text, numbered by first appearance, so a part never depends
on how many processes work or in what order. A part counts only with a record of the same recipe
whose SHA-256 its vectors have; anything else is what a killed process or a bad disk left behind and
is made again. Parts are claimed by kernel locks, which vanish with their process. The distinct
texts of a corpus are told apart by 64-bit keys (two of 10 million differ but share one with
probability 3e-6); the corpus itself is never in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import StoreError
from compass_core.storage import (
    file_lock,
    fsync_path,
    read_array,
    read_json,
    write_array,
    write_json,
)

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
EncodePart = Callable[[list[str], Rows], Vectors]
"""(texts, their rows in the corpus) -> (N, d) vectors."""

ALIVE = "alive.lock"
_READ_ROWS = 8192
_STALE_SECONDS = 7 * 24 * 3600
_BUSY = "E63"


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What is to be made.

    Attributes:
        folder: Where the parts are kept.
        rows: Parquet file of the corpus.
        recipe: Identity of corpus, encoder and settings; parts of another one are made again.
        part_rows: Distinct texts per part.
        n_rows: N.
        n_distinct: Distinct texts.
    """

    folder: Path
    rows: Path
    recipe: str
    part_rows: int
    n_rows: int
    n_distinct: int

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-self.n_distinct // self.part_rows)

    def size(self, part: int) -> int:
        """Return the number of texts of `part`."""
        return min(self.part_rows, self.n_distinct - part * self.part_rows)

    def vectors_path(self, part: int) -> Path:
        """Return where the vectors of `part` are."""
        return self.folder / f"part-{part:05d}.npy"

    def record_path(self, part: int) -> Path:
        """Return where the record of `part` is."""
        return self.folder / f"part-{part:05d}.json"


def plan_parts(folder: Path, rows: Path, recipe: str, part_rows: int) -> PartPlan:
    """Find the distinct texts of a corpus and write their places into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = np.concatenate([np.zeros(0, np.uint64), *map(_text_keys, _text_batches(rows))])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    number = np.empty(len(first), dtype=np.int64)
    number[by_appearance] = np.arange(len(first))
    write_array(folder / "place.npy", number[group])
    write_array(folder / "first.npy", first[by_appearance].astype(np.int64))
    return PartPlan(folder, rows, recipe, part_rows, len(keys), len(first))


def missing_parts(plan: PartPlan) -> list[int]:
    """Return the parts without vectors of this recipe; checksums are left to `assemble_parts`."""
    return [part for part in range(plan.n_parts) if _record(plan, part) is None]


def make_parts(
    plan: PartPlan,
    encode: EncodePart,
    precision: str,
    *,
    claim_seconds: float = 0.0,
    may_go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Make every part that is missing and not being made by somebody else; return how many.

    Args:
        plan: from `plan_parts`.
        encode: makes the vectors of one part.
        precision: of the encoder, for the record.
        claim_seconds: how long to wait for a part that another process has claimed.
        may_go_on: asked before each part.
    """
    first: Rows = read_array(plan.folder / "first.npy")
    made = 0
    for part in missing_parts(plan):
        with _claimed(plan, part, claim_seconds) as mine:
            if not mine or not may_go_on() or _record(plan, part) is not None:
                continue
            rows = first[part * plan.part_rows :][: plan.part_rows]
            # No name for the vectors: they would stay in memory beside those of the next part.
            _write_part(plan, part, encode(read_texts(plan.rows, rows), rows), precision)
            made += 1
    return made


def assemble_parts(plan: PartPlan, target: Path) -> list[int]:
    """Write the vectors of all rows to `target`, a block at a time.

    Returns:
        Parts that are missing or damaged; they are removed, and nothing is written unless empty.
    """
    parts = [_checked_part(plan, part) for part in range(plan.n_parts)]
    widths = {part.shape[1] for part in parts if part is not None}
    # Vectors of different lengths come of different encoders, so none of them can be believed.
    broken = [k for k, part in enumerate(parts) if part is None or len(widths) > 1]
    for part in broken:
        plan.record_path(part).unlink(missing_ok=True)
        plan.vectors_path(part).unlink(missing_ok=True)
    if not broken:
        _write_rows(plan, [part for part in parts if part is not None], target)
    return broken


def part_precisions(plan: PartPlan) -> list[str]:
    """Return the precisions the parts were made with."""
    records = (_record(plan, part) for part in range(plan.n_parts))
    return sorted({str(record["precision"]) for record in records if record is not None})


def sweep_parts(root: Path) -> int:
    """Remove what abandoned embeddings left under `root`; return how many.

    Abandoned are folders in which nothing was written for a week and nobody works.
    """
    removed = 0
    for folder in sorted(root.glob("*")):
        with contextlib.suppress(FileNotFoundError, StoreError):
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - newest < _STALE_SECONDS:
                continue
            with file_lock(folder / ALIVE, timeout_seconds=0.0):
                shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def read_texts(rows: Path, numbers: Rows) -> list[str]:
    """Return the texts of the rows `numbers` (ascending), reading only what lies around them."""
    file = pq.ParquetFile(rows, memory_map=True)
    groups, start = _row_groups(file, int(numbers[0]), int(numbers[-1]))
    texts: list[str] = []
    for batch in _texts(file, groups):
        low, high = np.searchsorted(numbers, [start, start + len(batch)])
        texts += batch.take(pa.array(numbers[low:high] - start)).to_pylist()
        start += len(batch)
        if high == len(numbers):
            break
    return texts


def _row_groups(file: pq.ParquetFile, first: int, last: int) -> tuple[list[int], int]:
    """Return the row groups that hold the rows `first` to `last`, and their first row."""
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    low, high = np.searchsorted(ends, [first, last], side="right")
    return list(range(int(low), int(high) + 1)), int(ends[low] - sizes[low])


def _text_batches(rows: Path) -> Iterator[list[str]]:
    file = pq.ParquetFile(rows, memory_map=True)
    for batch in _texts(file, list(range(file.num_row_groups))):
        yield batch.to_pylist()


def _texts(file: pq.ParquetFile, groups: list[int]) -> Iterator[Any]:
    """Yield the texts in batches: the prompt, or the response of a plain-text row."""
    for batch in file.iter_batches(_READ_ROWS, row_groups=groups, columns=["prompt", "response"]):
        prompt, response = (batch.column(name).fill_null("") for name in ("prompt", "response"))
        yield pc.if_else(pc.equal(prompt, ""), response, prompt)


def _text_keys(texts: list[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


@contextlib.contextmanager
def _claimed(plan: PartPlan, part: int, seconds: float) -> Iterator[bool]:
    """Hold the claim on `part`, or yield False where somebody else does."""
    with contextlib.ExitStack() as held:
        try:
            lock = plan.folder / f"part-{part:05d}.lock"
            held.enter_context(file_lock(lock, timeout_seconds=seconds))
        except StoreError as error:
            if error.code != _BUSY:
                raise
            yield False
            return
        yield True


def _write_part(plan: PartPlan, part: int, vectors: Vectors, precision: str) -> None:
    """Publish the vectors, then the record that makes them count; the claim must be held."""
    temporary = plan.folder / f"part-{part:05d}.tmp.npy"
    try:
        write_array(temporary, vectors)
        fsync_path(temporary)
        temporary.replace(plan.vectors_path(part))
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    record = {
        "recipe": plan.recipe,
        "rows": len(vectors),
        "precision": precision,
        "sha256": hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest(),
    }
    write_json(plan.record_path(part), record)


def _record(plan: PartPlan, part: int) -> dict[str, Any] | None:
    """Return the record of `part` if it is of this recipe and its vectors are there."""
    try:
        record = read_json(plan.record_path(part))
        mine = (record["recipe"], record["rows"]) == (plan.recipe, plan.size(part))
        return dict(record) if mine and plan.vectors_path(part).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checked_part(plan: PartPlan, part: int) -> Vectors | None:
    """Return the vectors of `part`, memory-mapped, if they are what the record says."""
    record = _record(plan, part)
    if record is None:
        return None
    try:
        vectors: Vectors = read_array(plan.vectors_path(part), mmap=True)
    except (OSError, EOFError, ValueError):
        return None
    whole = vectors.ndim == 2 and len(vectors) == plan.size(part) and vectors.dtype == np.float32
    digest = hashlib.sha256(vectors.data).hexdigest() if whole else ""
    return vectors if digest == record["sha256"] else None


def _write_rows(plan: PartPlan, parts: list[Vectors], target: Path) -> None:
    """Write (N, d) to `target` as ``.npy``; plain writes, so that a full disk is an error."""
    place: Rows = read_array(plan.folder / "place.npy", mmap=True)
    shape = (plan.n_rows, parts[0].shape[1])
    with target.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        for start in range(0, plan.n_rows, _READ_ROWS):
            numbers = place[start : start + _READ_ROWS]
            owner, offset = np.divmod(numbers, plan.part_rows)
            block = np.empty((len(numbers), shape[1]), dtype="<f4")
            for part in np.unique(owner):
                here = owner == part
                block[here] = parts[part][offset[here]]
            stream.write(block.data)
