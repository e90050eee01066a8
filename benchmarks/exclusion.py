"""What exclusion finds, what it removes wrongly, and how fast it is.

    python benchmarks/exclusion.py [--languages en sw ar hi zh ja ko] [--rows 20000] [--scale 0]

Copies of test items with small edits are planted in pools of real rows (sib200, tico19, xquad,
exams and mgsm of `COMPASS_TEST_DATA`); next to COMPASS stand what is usually done: equal texts, and
a set of 13-word n-grams.  Then follow near-duplicates by their true similarity, what is removed
from pools that hold no copies, and the speed against plain Python loops on the same rows.
``--scale 1000000`` measures time and anonymous memory on so many rows (needs 2 GB of disk).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compass_core.records import EXAMPLE_SCHEMA, Example, examples_to_table
from compass_core.selection.exclusion import exclude_rows
from compass_core.selection.ngrams import LETTER, fold, weight_of
from compass_core.selection.sketches import Sketch, read_sketch, sketch_rows, write_sketch
from compass_core.selection.words import normalise

DATA = Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data"))
FILES = ("sib200", "tico19", "xquad", "exams", "mgsm")
LANGUAGES = ("en", "sw", "vi", "tr", "ru", "ar", "hi", "zh", "ja", "ko")
N_TESTED = 200
WORD = re.compile(r"\S+")


def read_texts(name: str, language: str) -> list[str]:
    """Return the different texts of one file in one language (xquad: the passages)."""
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        sys.exit(f"{path} is missing: set COMPASS_TEST_DATA to the folder of the test data.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        texts = [r.get("context", r["text"]) for r in rows if r["language"] == language]
    return list(dict.fromkeys(texts))


def sketch(texts: Sequence[str], prefix: str) -> Sketch:
    """Return the sketch of rows with these prompts."""
    return sketch_rows(
        examples_to_table(
            Example(id=f"{prefix}{i}", language="und_Zyyy", prompt=text)
            for i, text in enumerate(texts)
        )
    )


def plain(text: str) -> str:
    """Return `text` in capitals, without punctuation, with doubled spaces."""
    kept = (
        re.sub(r"[^\w\s]|_", "", text) if text.isascii() else re.sub(r"[.,;:!?。、,؟।]", "", text)
    )
    return kept.upper().replace(" ", "  ")


def one_word(text: str, word: str) -> str:
    """Return `text` with the word (or, unspaced, the two characters) in its middle replaced."""
    places = [m.span() for m in WORD.finditer(text)]
    if len(places) >= 4:
        start, stop = places[len(places) // 2]
    else:
        start, stop = len(text) // 2, len(text) // 2 + 2
        word = word[:2]
    return text[:start] + word + text[stop:]


Edit = Callable[[str, str, str, str], str]
EDITS: dict[str, Edit] = {
    "copy": lambda t, a, b, w: t,
    "plain": lambda t, a, b, w: plain(t),
    "1 word": lambda t, a, b, w: one_word(t, w),
    "inside": lambda t, a, b, w: f"{a} {t} {b}",
    "in 1 w": lambda t, a, b, w: f"{a} {one_word(t, w)} {b}",
    "half": lambda t, a, b, w: f"{a} {t[: len(t) // 2]} {b}",
}
LEGEND = """
copy: as it is; plain: capitals, no punctuation, doubled spaces; 1 word: its middle word (unspaced:
2 characters) replaced; inside: between two other texts; in 1 w: inside with one word replaced;
half: its first half inside.  long: share of items of 50 letters or as much in their script.
other: share of the unrelated rows of the same file that are removed (some do repeat an item).
"""


def by_equal_text(pool: Sequence[str], test: Sequence[str]) -> list[bool]:
    """Tell rows with the normalised text of a test item."""
    known = {normalise(text) for text in test}
    return [normalise(text) in known for text in pool]


def word_ngrams(text: str, n: int = 13) -> Iterator[str]:
    """Yield the n-grams of words of `text`."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def by_word_ngrams(pool: Sequence[str], test: Sequence[str]) -> list[bool]:
    """Tell rows that share 13 words in a row with a test item."""
    known = {gram for text in test for gram in word_ngrams(text)}
    return [any(gram in known for gram in word_ngrams(text)) for text in pool]


def by_compass(pool: Sequence[str], test: Sequence[str]) -> list[bool]:
    """Tell rows that COMPASS removes because of a test item."""
    excluded = exclude_rows([sketch(pool, "p")], test=sketch(test, "t"), near_duplicates=0.8)
    of_pool = {"duplicate in pool", "near-duplicate in pool"}
    rows = zip(
        excluded.removed["row"].to_pylist(), excluded.removed["reason"].to_pylist(), strict=True
    )
    removed = {row for row, reason in rows if reason not in of_pool}
    return [row in removed for row in range(len(pool))]


METHODS = {"equal": by_equal_text, "13 words": by_word_ngrams, "COMPASS": by_compass}


def show_recall(languages: Sequence[str]) -> None:
    """Print the share of planted copies found and of other rows removed."""
    print("Planted copies of 200 test items found, and other rows removed", LEGEND)
    print(f"{'':30s}" + " ".join(f"{name:>6s}" for name in ("long", "other", *EDITS)))
    for language in languages:
        for name in FILES:
            texts = read_texts(name, language)
            if len(texts) < 2 * N_TESTED:
                continue
            rng = np.random.default_rng(0)
            texts = [texts[i] for i in rng.permutation(len(texts))]
            test, others = texts[:N_TESTED], texts[N_TESTED:]
            long = np.mean(weight_of(fold([normalise(t) for t in test])) >= 50 * LETTER)
            pools = [others]
            for edit in EDITS.values():
                around = rng.integers(0, len(others), (len(test), 2))
                pools.append(
                    [
                        edit(t, others[a], others[b], "zqxv")
                        for t, (a, b) in zip(test, around, strict=True)
                    ]
                )
            for method, find in METHODS.items():
                shares = (np.mean(find(pool, test)) for pool in pools)
                row = " ".join(f"{share:6.3f}" for share in (long, *shares))
                print(f"{language:3s} {name:8s} {len(others):6d}  {method:9s} {row}", flush=True)


def shingles(text: str) -> set[str]:
    """Return the 5-grams of the letters of an alphabetic text, for the true similarity."""
    letters = re.sub(r"[\W_]", "", normalise(text))
    return {letters[i : i + 5] for i in range(len(letters) - 4)}


def show_similarity() -> None:
    """Print the share of near-duplicates found by true Jaccard similarity."""
    texts = [t for t in read_texts("tico19", "en") if len(t) > 120]
    rng = np.random.default_rng(1)
    pool, similar = [], []
    for i, text in enumerate(texts):
        words, others = text.split(), texts[i - 1].split()
        for place in rng.permutation(len(words))[: rng.integers(1, len(words) // 2)]:
            words[place] = others[place % len(others)]
        pool.append(" ".join(words))
        a, b = shingles(text), shingles(pool[-1])
        similar.append(len(a & b) / len(a | b))
    excluded = exclude_rows([sketch(pool, "p")], usage=sketch(texts, "u"), near_duplicates=0.8)
    hit = np.zeros(len(pool))
    hit[excluded.removed["row"].to_numpy()] = 1
    print("\nNear-duplicates found at near_duplicates=0.8, by true Jaccard similarity (tico19 en)")
    for low, high in pairwise((0.0, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.01)):
        inside = (np.array(similar) >= low) & (np.array(similar) < high)
        if inside.any():
            print(
                f"  {low:.2f}-{min(high, 1):.2f}  {inside.sum():5d} pairs  {hit[inside].mean():.3f}"
            )


def show_starter() -> None:
    """Print what is removed from the starter's pool beyond equal texts."""
    from compass_core.starter.corpus import DEMO_LANGUAGES, build_language, build_pool

    pool = sketch_rows(examples_to_table(build_pool()))
    print(f"\nStarter ({pool.n_rows} pool rows): rows removed by reason")
    for language in DEMO_LANGUAGES:
        split = build_language(
            language, seed=0, n_coverage=400, n_usage=200, n_test=400, n_missing_topics=3
        )
        corpora = {
            name: sketch_rows(examples_to_table(getattr(split, name)))
            for name in ("usage", "coverage", "test")
        }
        reasons = exclude_rows([pool], **corpora).reasons
        print(f"  {language}  " + ", ".join(f"{k} {v}" for k, v in reasons.items() if v))


def show_templates() -> None:
    """Print what is removed when all rows and items stand in one long instruction."""
    texts = read_texts("tico19", "en")
    frame = read_texts("xquad", "en")[0] + "\n\n{}\n\nAnswer:"
    test, pool = texts[:N_TESTED], texts[N_TESTED:]
    print("\nUnrelated rows in one template of", len(frame), "characters as the test items")
    for label, method in METHODS.items():
        hit = method([frame.format(t) for t in pool], [frame.format(t) for t in test])
        print(f"  {label:10s} removes {np.mean(hit):.3f} of {len(pool)} rows")


def made_up_rows(n_rows: int, rng: np.random.Generator) -> list[str]:
    """Return texts of about 200 characters over a skewed vocabulary."""
    lengths = rng.integers(2, 10, 20_000)
    words = np.array(
        ["".join(rng.choice(list("etaoinshrdlucmfwyp"), n)) for n in lengths], dtype=object
    )
    drawn = np.minimum(rng.zipf(1.2, (n_rows, 36)) - 1, len(words) - 1)
    return [" ".join(words[row]) for row in drawn]


def minhash_loop(texts: Sequence[str], n_permutations: int = 100) -> list[list[int]]:
    """Return rows alike by LSH as a plain per-text loop does it (one array per text)."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 2**31, (2, n_permutations, 1), dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for row, text in enumerate(texts):
        grams = np.array([hash(gram) & 0xFFFFFFFF for gram in shingles(text)], dtype=np.uint64)
        minima = ((a * grams + b) % np.uint64((1 << 61) - 1)).min(axis=1)
        for band in range(0, n_permutations, 5):
            buckets.setdefault((band, minima[band : band + 5].tobytes()), []).append(row)
    return [rows for rows in buckets.values() if len(rows) > 1]


def show_speed(n_rows: int) -> None:
    """Print seconds of the sketch and of the exclusion against plain loops, interleaved."""
    rng = np.random.default_rng(2)
    texts = made_up_rows(n_rows, rng)
    test = made_up_rows(1_000, rng)
    table = examples_to_table(
        Example(id=f"r{i}", language="und_Zyyy", prompt=t) for i, t in enumerate(texts)
    )
    reference = sketch(test, "t")
    found: dict[str, Sketch] = {}

    def make_sketch() -> None:
        found["pool"] = sketch_rows(table)

    sides = {
        "sketch": make_sketch,
        "exclude": lambda: exclude_rows([found["pool"]], test=reference),
        "13-word set": lambda: by_word_ngrams(texts, test),
        "MinHash loop": lambda: minhash_loop(texts),
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(2):
        for name, side in sides.items():
            started = time.process_time()
            side()
            best[name] = min(best[name], time.process_time() - started)
    print(f"\nCPU seconds on {n_rows} rows of {np.mean([len(t) for t in texts]):.0f} characters")
    for name, seconds in best.items():
        print(f"  {name:14s} {seconds:8.2f} s   {1e6 * seconds / n_rows:7.1f} us a row")
    ours = best["sketch"] + best["exclude"]
    print(
        f"  13-word set / ours           {best['13-word set'] / ours:6.2f} (decontamination alone)"
    )
    print(
        f"  MinHash loop / ours          {best['MinHash loop'] / ours:6.2f} (near-duplicates alone)"
    )
    print(
        f"  once sketched, 13-word / ours{best['13-word set'] / best['exclude']:6.2f} per language"
    )


def anonymous_mib() -> float:
    """Return the anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]


def show_scale(n_rows: int) -> None:
    """Print time and anonymous memory on many rows, 30 % of them copies or near-copies."""
    peak = [0.0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous_mib())
            time.sleep(0.02)

    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In a process of its own, whose memory does not count.
        with ProcessPoolExecutor(1) as other:
            test = other.submit(write_rows, folder / "rows.parquet", n_rows, rng).result()
        threading.Thread(target=watch, daemon=True).start()
        size = (folder / "rows.parquet").stat().st_size / 2**20
        print(f"\n{n_rows} rows, {size:.0f} MiB; {anonymous_mib():.0f} MiB anonymous before")
        for label, step in (
            ("write_sketch", lambda: write_sketch(folder / "rows.parquet", folder / "sketch")),
            ("exclude_rows", lambda: exclude_rows([read_sketch(folder / "sketch")], test=test)),
        ):
            peak[0], wall, cpu = 0.0, time.perf_counter(), time.process_time()
            result = step()
            print(
                f"  {label}  {time.perf_counter() - wall:.1f} s wall, "
                f"{time.process_time() - cpu:.1f} s CPU, {peak[0]:.0f} MiB anonymous"
            )
        print("  removed:", {name: n for name, n in result.reasons.items() if n})
        size = sum(path.stat().st_size for path in (folder / "sketch").iterdir())
        print(f"  sketch: {size / n_rows:.0f} bytes a row")


def write_rows(path: Path, n_rows: int, rng: np.random.Generator) -> Sketch:
    """Write made-up rows; return the sketch of a test set of which 500 items are among them."""
    test: list[str] = []
    previous: list[str] = []
    with pq.ParquetWriter(path, EXAMPLE_SCHEMA, compression="zstd") as writer:
        for start in range(0, n_rows, 20_000):
            texts = made_up_rows(min(20_000, n_rows - start), rng)
            for i in range(0, len(texts), 10):
                source = previous or texts
                copied = source[int(rng.integers(len(source)))]
                texts[i] = copied
                if i + 2 < len(texts):
                    texts[i + 1] = one_word(copied, "zqxv")
                    texts[i + 2] = plain(copied)
            previous = texts
            test = test or texts[:500] + made_up_rows(500, rng)
            size = len(texts)
            columns = {name: [""] * size for name in EXAMPLE_SCHEMA.names} | {
                "id": [f"row-{start + i}" for i in range(size)],
                "prompt": [t[:100] for t in texts],
                "response": [t[100:] for t in texts],
                "history": [[]] * size,
                "choices": [[]] * size,
                "answer_index": [None] * size,
            }
            writer.write_table(pa.table(columns, schema=EXAMPLE_SCHEMA))
    return sketch([t[:100] for t in test], "t")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", nargs="*", default=LANGUAGES)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--scale", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.scale:
        show_scale(arguments.scale)
        return
    show_recall(arguments.languages)
    show_similarity()
    show_starter()
    show_templates()
    show_speed(arguments.rows)


if __name__ == "__main__":
    main()
