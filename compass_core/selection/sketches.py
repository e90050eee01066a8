"""What exclusion needs to know of a corpus, without its texts: a folder of memory-mapped arrays.

A sketch depends on the rows alone, so a shard of a pool is sketched once, whatever is compared with
it later.  It costs about 650 bytes a row of 200 characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from compass_core.errors import StoreError
from compass_core.selection.drawing import Keys, example_keys
from compass_core.selection.ngrams import (
    N_PERMUTATIONS,
    RUN_WEIGHT,
    Letters,
    fingerprints,
    fold,
    mix,
    signatures,
    text_hashes,
    weight_of,
)
from compass_core.selection.words import normalise
from compass_core.storage import read_array, read_json, write_json

SKETCH_VERSION: Final = 1

N_BANDS: Final = 20
"""Bands of 5 minima: two texts of similarity .8 share one with probability .9996, of .7 with .975,
of .5 with .47, of .2 with .006."""

_BAND_ROWS: Final = N_PERMUTATIONS // N_BANDS
_COLUMNS: Final = [
    "id",
    "prompt",
    "response",
    "history",
    "choices",
    "parallel_id",
    "source",
    "licence",
]
_BATCH_ROWS: Final = 2_048
_BLOCK_CHARACTERS: Final = 1 << 18
_MAX_CHARACTERS: Final = 1 << 20
_SEPARATOR: Final = "\x1f"
_NAMES: Final = "sketch.json"


@dataclass(frozen=True)
class Sketch:
    """One corpus of N rows; arrays may be memory-mapped.

    "Prompt" means the prompt, or the response of a plain-text row; "whole" is all the text of a row
    (prompt, choices, response, earlier turns).  Of a row beyond 2^20 characters the rest is not
    looked at.

    Attributes:
        keys: (N,) `example_keys` of the ids.
        prompt_keys: (N,) of the prompt's letters alone (`ngrams.fold`); 0 = no text.
        pair_keys: (N,) of prompt and response, case-folded in NFKC with white space collapsed.
        parallel_keys: (N,) of parallel ids; 0 = none.
        sources: (N,) index into `source_names`.
        licences: (N,) index into `licence_names`.
        prompt_bands: (N, `N_BANDS`) hashes of 5 minima each; 0 = below 40 letters, not compared.
        prompt_signatures: (N, `N_PERMUTATIONS`) low byte of each minimum.
        whole_bands: the same of the whole row.
        whole_signatures: the same of the whole row.
        fingerprints: (F,) winnowed n-grams of the whole row, row after row.
        fingerprint_offsets: (N + 1,) first fingerprint of each row.
        id_bytes: (M,) the ids in UTF-8, one after another.
        id_offsets: (N + 1,) first byte of each id.
        source_names: Distinct values of ``source``.
        licence_names: Distinct values of ``licence``.
    """

    keys: Keys
    prompt_keys: Keys
    pair_keys: Keys
    parallel_keys: Keys
    sources: NDArray[np.uint32]
    licences: NDArray[np.uint32]
    prompt_bands: NDArray[np.uint32]
    prompt_signatures: NDArray[np.uint8]
    whole_bands: NDArray[np.uint32]
    whole_signatures: NDArray[np.uint8]
    fingerprints: Keys
    fingerprint_offsets: NDArray[np.int64]
    id_bytes: NDArray[np.uint8]
    id_offsets: NDArray[np.int64]
    source_names: tuple[str, ...]
    licence_names: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of `rows`."""
        offsets, characters = np.asarray(self.id_offsets), np.asarray(self.id_bytes)
        return [bytes(characters[offsets[r] : offsets[r + 1]]).decode() for r in rows]


_ARRAYS: Final = tuple(f.name for f in fields(Sketch) if not f.name.endswith("_names"))
_FLAT: Final = {"fingerprints": "fingerprint_offsets", "id_bytes": "id_offsets"}


def write_sketch(rows: Path, folder: Path) -> int:
    """Write the sketch of a Parquet file of ``EXAMPLE_SCHEMA`` into `folder`; return its rows.

    The rows are streamed: memory does not grow with their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, dict[str, int]] = {"source": {}, "licence": {}}
    writers: dict[str, _ArrayFile] = {}
    with pq.ParquetFile(rows, memory_map=True, pre_buffer=False) as file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=_COLUMNS, use_threads=False)
        try:
            for part in _parts(batches, names):
                for name, array in part.items():
                    if name not in writers:
                        writers[name] = _ArrayFile(folder / f"{name}.npy", array)
                    writers[name].append(array)
        finally:
            for writer in writers.values():
                writer.close()
    facts = {"version": SKETCH_VERSION, "rows": writers["keys"].rows}
    write_json(folder / _NAMES, facts | {name: list(codes) for name, codes in names.items()})
    return writers["keys"].rows


def read_sketch(folder: Path) -> Sketch:
    """Return the sketch in `folder`, memory-mapped.

    Raises:
        StoreError: the sketch is missing, incomplete or of another version.
    """
    try:
        facts = read_json(folder / _NAMES)
        if facts["version"] != SKETCH_VERSION:
            raise ValueError(f"version {facts['version']}, this COMPASS reads {SKETCH_VERSION}")
        arrays: dict[str, Any] = {n: read_array(folder / f"{n}.npy", mmap=True) for n in _ARRAYS}
        _check(arrays, facts["rows"])
        names = tuple(facts["source"]), tuple(facts["licence"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The sketch {folder} cannot be used: {error}. Delete the folder and run the same "
            "command again: only this shard will be sketched."
        ) from error
    return Sketch(**arrays, source_names=names[0], licence_names=names[1])


def sketch_rows(table: pa.Table) -> Sketch:
    """Return the sketch of a table of ``EXAMPLE_SCHEMA`` in memory, for small corpora."""
    names: dict[str, dict[str, int]] = {"source": {}, "licence": {}}
    parts = list(_parts(table.select(_COLUMNS).to_batches(_BATCH_ROWS), names))
    arrays: dict[str, Any] = {n: np.concatenate([part[n] for part in parts]) for n in _ARRAYS}
    return Sketch(
        **arrays, source_names=tuple(names["source"]), licence_names=tuple(names["licence"])
    )


def _check(arrays: dict[str, NDArray[Any]], n_rows: int) -> None:
    for name, array in arrays.items():
        wanted = n_rows + (name in _FLAT.values())
        if name in _FLAT:
            wanted = int(arrays[_FLAT[name]][-1])
        if len(array) != wanted:
            raise ValueError(f"{name} holds {len(array)} entries instead of {wanted}")


def _parts(
    batches: Iterable[pa.RecordBatch], names: dict[str, dict[str, int]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the arrays of consecutive blocks of rows; the first part is empty but for offsets."""
    yield _empty()
    reached = dict.fromkeys(_FLAT.values(), 0)
    for batch in batches:
        rows = batch.to_pydict()
        texts = [_texts(*row) for row in zip(*(rows[n] for n in _COLUMNS[1:5]), strict=True)]
        for start, stop in _blocks(texts):
            part = _sketch_texts(texts[start:stop])
            part |= _sketch_labels({n: rows[n][start:stop] for n in rows}, names)
            for name in reached:
                part[name] = part[name][1:] + reached[name]
                reached[name] = int(part[name][-1])
            yield part


def _empty() -> dict[str, NDArray[Any]]:
    return _sketch_texts([]) | _sketch_labels({n: [] for n in _COLUMNS}, {})


def _texts(
    prompt: str, response: str, history: list[dict[str, str]], choices: list[str]
) -> tuple[str, str, str]:
    """Return what a row is compared by: its prompt, the rest of its text, and the pair."""
    asked, answered = normalise(prompt), normalise(response)
    pair = asked + _SEPARATOR + answered
    if not asked:
        asked, answered = answered, ""
    if history or choices:
        others = [turn["content"] or "" for turn in history]
        answered = " ".join([*map(normalise, choices), answered, *map(normalise, others)])
    return asked[:_MAX_CHARACTERS], answered[:_MAX_CHARACTERS], pair


def _blocks(texts: Sequence[tuple[str, str, str]]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of about `_BLOCK_CHARACTERS` characters, at least one row each."""
    start, size = 0, 0
    for row, (asked, rest, _) in enumerate(texts):
        size += len(asked) + len(rest)
        if size >= _BLOCK_CHARACTERS:
            yield start, row + 1
            start, size = row + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _sketch_texts(texts: Sequence[tuple[str, str, str]]) -> dict[str, NDArray[Any]]:
    """Return the arrays that depend on the texts."""
    letters = fold([part for asked, rest, _ in texts for part in (asked, rest)])
    asked = text_hashes(letters)[::2]
    # A text of punctuation alone is told by what it is.
    bare = [row for row in np.flatnonzero(asked == 0).tolist() if texts[row][0]]
    asked[bare] = example_keys(texts[row][0] for row in bare)
    rows = letters._replace(offsets=letters.offsets[::2])
    hashes, offsets = fingerprints(rows)
    return {
        "prompt_keys": asked,
        "pair_keys": example_keys(pair for _, _, pair in texts),
        "fingerprints": hashes,
        "fingerprint_offsets": offsets,
        **_minhashes(letters, weight_of(rows)),
    }


def _minhashes(letters: Letters, weights: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return bands and signatures of prompts and of whole rows, for rows that hold 40 letters."""
    n_rows = len(weights)
    minima = np.full((N_PERMUTATIONS, 2 * n_rows), 0xFFFFFFFF, dtype=np.uint32)
    if (weights >= RUN_WEIGHT).any():
        minima = signatures(letters)
    found: dict[str, NDArray[Any]] = {}
    prompts = np.ascontiguousarray(minima[:, ::2].T)
    sides = {
        "prompt": (prompts, weight_of(letters)[::2]),
        "whole": (np.minimum(prompts, minima[:, 1::2].T), weights),
    }
    for name, (signature, weight) in sides.items():
        bands = np.zeros((n_rows, N_BANDS), dtype=np.uint64)
        for step in range(_BAND_ROWS):
            bands = mix(bands + signature[:, step::_BAND_ROWS])
        found[f"{name}_bands"] = np.where(
            (weight >= RUN_WEIGHT)[:, None], np.maximum(bands >> np.uint64(32), 1), 0
        ).astype(np.uint32)
        scrambled = signature * np.uint32(0x9E3779B1)
        found[f"{name}_signatures"] = (scrambled >> np.uint32(24)).astype(np.uint8)
    return found


def _sketch_labels(
    rows: dict[str, list[str]], names: dict[str, dict[str, int]]
) -> dict[str, NDArray[Any]]:
    """Return the arrays that depend on ids and labels; new labels are added to `names`."""
    parallel = example_keys(rows["parallel_id"])
    parallel[[not name for name in rows["parallel_id"]]] = 0
    encoded = [name.encode() for name in rows["id"]]
    found: dict[str, NDArray[Any]] = {
        "keys": example_keys(rows["id"]),
        "parallel_keys": parallel,
        "id_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "id_offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }
    for name in ("source", "licence"):
        codes = names.setdefault(name, {})
        found[f"{name}s"] = np.array(
            [codes.setdefault(label, len(codes)) for label in rows[name]], dtype=np.uint32
        )
    return found


class _ArrayFile:
    """A ``.npy`` file that grows along its first axis; its header is completed on `close`.

    Plain writes and no memory map: a full disk is then an error and not a killed process.
    """

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        self.rows = 0
        self._like = like
        self._stream = path.open("wb")
        self._write_header()
        self._start = self._stream.tell()

    def append(self, array: NDArray[Any]) -> None:
        self.rows += len(array)
        self._stream.write(np.ascontiguousarray(array).data)

    def close(self) -> None:
        with self._stream:
            self._stream.seek(0)
            self._write_header()
            # numpy pads the header so that the first axis may grow to any length.
            assert self._stream.tell() == self._start

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._like.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._stream, header)
