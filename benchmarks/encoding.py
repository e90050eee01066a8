"""Embedding against `SentenceTransformer.encode`, and its memory at a million texts.

    python benchmarks/encoding.py [--texts 1000] [--rounds 3] [--threads 1] [--batch-sizes 8 32 128]
    python benchmarks/encoding.py --memory [--rows 1000000]

Speed: a transformer of 6 layers of width 384 with mean pooling (the shape of
multilingual-e5-small at half its depth; random weights, a tokenizer fitted on the texts), and the
shipped static encoder. Texts come from COMPASS_TEST_DATA, questions to passages in a hundred
languages, or are made up with the same spread of lengths where it is absent. Arms are interleaved;
CPU time of the process, all threads together; the fastest round of each counts. The ratio is to
`encode` with its default batch of 32 and to the fastest of the batch sizes given. All compute in
float32.

Memory: short texts, a tenth of them duplicates, through the jobs that a run hands to a trainer, in
a process of its own; the peak of its anonymous memory (RssAnon of /proc, sampled every 10 ms).
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DEFAULT_BATCH = 32
DUPLICATES = 0.3
LIMIT_MIB = 600
MAX_TOKENS = 256
PART_ROWS = 65_536


# --------------------------------------------------------------------------- texts and encoders
def real_texts(folder: Path) -> list[str]:
    """Return the distinct texts of the shared data; empty where it is absent."""
    texts: dict[str, None] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                question = row.get("question") or row.get("text") or ""
                texts[f"{row.get('context', '')} {question}".strip()] = None
    texts.pop("", None)
    return list(texts)


def made_up_texts(n: int, rng: np.random.Generator) -> list[str]:
    """Return `n` texts whose lengths in words are log-normal."""
    words = [
        "".join(rng.choice(list("abcdefghijklmnop"), size=k))
        for k in range(2, 9)
        for _ in range(300)
    ]
    counts = np.clip(rng.lognormal(3.2, 0.8, size=n), 2, 400).astype(int)
    return list({" ".join(rng.choice(words, size=count)): None for count in counts})


def build_transformer(folder: Path, texts: list[str]) -> Path:
    """Save a random transformer encoder with a tokenizer of its own."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, special_tokens=special, limit_alphabet=4000, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    torch.manual_seed(0)
    model = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=514,
            type_vocab_size=1,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(folder / "source")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=512,
    ).save_pretrained(folder / "source")
    transformer = Transformer(str(folder / "source"))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


# --------------------------------------------------------------------------- speed
def compare(path: Path, corpus: list[str], batch_sizes: list[int], rounds: int) -> None:
    """Print texts per CPU second of every arm, the ratios and the least cosine."""
    from compass_core.embedding import load_encoder
    from compass_core.embedding_batches import encode_texts

    encoder = load_encoder(str(path), device="cpu", max_length=MAX_TOKENS)
    model: Any = encoder.model

    def theirs(batch_size: int) -> Any:
        return model.encode(
            corpus, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )

    arms: dict[str, Callable[[], Any]] = {"compass": lambda: encode_texts(encoder, corpus)}
    for size in sorted({DEFAULT_BATCH, *batch_sizes}):
        arms[f"encode, batch {size}"] = partial(theirs, size)
    best: dict[str, float] = {}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for arm, run in arms.items():
            started = time.process_time()
            found[arm] = run()
            best[arm] = min(best.get(arm, np.inf), time.process_time() - started)
    default = f"encode, batch {DEFAULT_BATCH}"
    cosine = float((found["compass"] * found[default]).sum(axis=1).min())
    for arm, seconds in best.items():
        print(f"  {arm:18s} {len(corpus) / seconds:9.0f} texts/CPU s")
    ours = best.pop("compass")
    print(
        f"  ratio              {best[default] / ours:9.2f} × the default, "
        f"{min(best.values()) / ours:.2f} × the fastest; least cosine {cosine:.6f}"
    )


def measure_speed(arguments: argparse.Namespace) -> None:
    """Compare both encoders on a corpus without and one with duplicates."""
    import torch

    from compass_core.starter import encoder_path

    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    texts = real_texts(Path(os.environ.get("COMPASS_TEST_DATA", "../shared/data")))
    print(f"{len(texts)} texts of COMPASS_TEST_DATA" if texts else "made-up texts")
    texts = texts or made_up_texts(40_000, rng)
    with tempfile.TemporaryDirectory() as scratch:
        fitted_on = [texts[row] for row in rng.permutation(len(texts))[:10_000]]
        transformer = build_transformer(Path(scratch), fitted_on)
        for name, path, n in (
            ("transformer", transformer, arguments.texts),
            ("static encoder", encoder_path(), 20 * arguments.texts),
        ):
            distinct = [texts[row] for row in rng.permutation(len(texts))[:n]]
            n_kept = round((1 - DUPLICATES) * len(distinct))
            repeats = [distinct[row] for row in rng.integers(n_kept, size=len(distinct) - n_kept)]
            repeated = [*distinct[:n_kept], *repeats]
            mixed = [repeated[row] for row in rng.permutation(len(repeated))]
            for title, corpus in (("no", distinct), (f"{DUPLICATES:.0%}", mixed)):
                sizes = np.array([len(text) for text in corpus])
                print(
                    f"{name}, {len(corpus)} texts, {title} duplicates, median length "
                    f"{np.median(sizes):.0f}, longest {sizes.max()}"
                )
                compare(path, corpus, arguments.batch_sizes, arguments.rounds)


# --------------------------------------------------------------------------- memory
def write_rows(path: Path, rows: int) -> None:
    """Write `rows` short prompts, a tenth of them duplicates, in row groups of the usual size."""
    numbers = range(rows)
    prompts = [f"Where is city {n if n % 10 else n // 10} of Kenya?" for n in numbers]
    pq.write_table(pa.table({"prompt": prompts, "response": [""] * rows}), path)


def embed_corpus(rows: Path, folder: Path, results: Any) -> None:
    """Embed with one worker, as a trainer process does, and report the peak of its memory."""
    from compass_core.embedding_jobs import assemble_job, parts_job, plan_job
    from compass_core.starter import encoder_path

    spec = {
        "encoder": str(encoder_path()),
        "revision": "",
        "device": "cpu",
        "dtype": "auto",
        "prefix": "",
        "batch_size": 256,
        "max_length": MAX_TOKENS,
        "threads": 1,
        "rows": str(rows),
        "vectors": str(folder / "vectors.npy"),
        "parts": str(folder / "parts"),
        "recipe": "benchmark",
        "shard_rows": PART_ROWS,
        "worker": 0,
        "claim_seconds": 0.0,
        "stop": str(folder / "stop"),
    }
    peak = [0.0]
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    for name, job in (("plan", plan_job), ("parts", parts_job), ("assemble", assemble_job)):
        peak[0], started = 0.0, time.perf_counter()
        spec |= job(spec)
        results.put((name, time.perf_counter() - started, peak[0]))


def _watch(peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], _anonymous_mib())
        time.sleep(0.01)


def _anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def steps(rows: Path, folder: Path) -> Iterator[tuple[str, float, float]]:
    """Yield name, seconds and peak MiB of the steps of an embedding in its own process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=embed_corpus, args=(rows, folder, results))
    process.start()
    for _ in range(3):
        yield results.get()
    process.join()


def measure_memory(n_rows: int) -> None:
    """Print seconds and peak of every step, and whether the limit holds."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.parquet"
        write_rows(rows, n_rows)
        highest = 0.0
        for name, seconds, peak in steps(rows, Path(scratch)):
            print(f"{name:9s} {seconds:7.1f} s   peak {peak:6.0f} MiB anonymous", flush=True)
            highest = max(highest, peak)
        shape = np.load(Path(scratch) / "vectors.npy", mmap_mode="r").shape
    verdict = "within" if highest <= LIMIT_MIB else "ABOVE"
    print(f"{shape[0]} × {shape[1]} vectors: {highest:.0f} MiB, {verdict} {LIMIT_MIB} MiB")


def main() -> None:
    """Measure speed, or memory with ``--memory``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 128])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.rows)
    else:
        measure_speed(arguments)


if __name__ == "__main__":
    main()
