"""The encoder as a module of sentence-transformers: a table of n-gram vectors, summed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn

from compass_core.ngram_encoder.features import ngram_matrix

_CONFIG = "ngrams.json"
_FORMAT = 1


class HashedNgrams(InputModule):  # type: ignore[misc]
    """Sum of the vectors of a text's n-grams, each weighted by 1 + ln(count).

    `load_ngram_model` loads a folder with it; `SentenceTransformer` alone would ask to trust it.
    """

    modalities: ClassVar[list[str]] = ["text"]

    def __init__(self, weights: torch.Tensor) -> None:
        """Take the table of n-gram vectors, (2^bits, d)."""
        super().__init__()
        table = weights.float()
        n_buckets, dim = table.shape
        self.embedding = nn.EmbeddingBag(n_buckets, dim, mode="sum", _weight=table)
        self.embedding.requires_grad_(requires_grad=False)
        self.n_bits = int(math.log2(len(weights)))

    def preprocess(
        self, inputs: list[str], prompt: str | None = None, **_options: Any
    ) -> dict[str, torch.Tensor]:
        """Return the n-grams of `inputs` as flat buckets, their weights, and where texts begin."""
        counts = ngram_matrix([prompt + text for text in inputs] if prompt else inputs, self.n_bits)
        return {
            "input_ids": torch.from_numpy(counts.indices.astype("int64")),
            "weights": torch.from_numpy(counts.data),
            "offsets": torch.from_numpy(counts.indptr[:-1].astype("int64")),
        }

    def forward(self, features: dict[str, torch.Tensor], **_options: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, (n, d)."""
        features["sentence_embedding"] = self.embedding(
            features["input_ids"], features["offsets"], per_sample_weights=features["weights"]
        )
        return features

    @property
    def max_seq_length(self) -> float:
        """Texts are cut by characters, see `features.ngram_matrix`."""
        return math.inf

    def get_embedding_dimension(self) -> int:
        """Return d."""
        return int(self.embedding.embedding_dim)

    def save(self, output_path: str, *_arguments: Any, **_options: Any) -> None:
        """Write table and format; half precision on disk."""
        folder = Path(output_path)
        table = {"embedding.weight": self.embedding.weight.half().contiguous()}
        save_file(table, str(folder / "model.safetensors"))
        facts = {"format": _FORMAT, "n_bits": self.n_bits}
        (folder / _CONFIG).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, model_name_or_path: str, **_options: Any) -> Self:
        """Load a table that `save` wrote.

        Raises:
            ValueError: the table is of another format.
        """
        folder = Path(model_name_or_path)
        facts = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")["embedding.weight"]
        if facts.get("format") != _FORMAT or len(weights) != 1 << facts["n_bits"]:
            raise ValueError(
                f"n-gram table of format {facts.get('format')} with {len(weights)} rows, expected "
                f"format {_FORMAT} with 2^{facts.get('n_bits')} rows"
            )
        return cls(weights)


def load_ngram_model(folder: Path, device: str) -> SentenceTransformer:
    """Load the model in `folder`; no code but this package's own takes part."""
    return SentenceTransformer(modules=[HashedNgrams.load(str(folder)), Normalize()], device=device)
