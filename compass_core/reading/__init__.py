"""From a person's files to rows of one schema, and checks of the corpora against each other."""

from compass_core.reading.corpus import read_corpus
from compass_core.reading.mapping import Role
from compass_core.reading.opening import corpus_fingerprint
from compass_core.reading.overlap import check_overlap, overlapping_rows

__all__ = ["Role", "check_overlap", "corpus_fingerprint", "overlapping_rows", "read_corpus"]
