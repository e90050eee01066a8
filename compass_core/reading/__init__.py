"""From a person's files to rows of one schema, and checks of the corpora against each other."""

from compass_core.reading.corpus import read_corpus, write_corpus
from compass_core.reading.identity import KnownContents, corpus_fingerprint
from compass_core.reading.mapping import Role
from compass_core.reading.overlap import OVERLAP_COLUMNS, check_overlap, overlapping_rows
from compass_core.reading.shards import Shard, check_ids, count_rows, pool_shards

__all__ = [
    "OVERLAP_COLUMNS",
    "KnownContents",
    "Role",
    "Shard",
    "check_ids",
    "check_overlap",
    "corpus_fingerprint",
    "count_rows",
    "overlapping_rows",
    "pool_shards",
    "read_corpus",
    "write_corpus",
]
