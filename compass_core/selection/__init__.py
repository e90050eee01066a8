"""Which pool examples to train on: clusters of meaning, gap, allocation, draw, and every baseline.

    vectors ─► clustering ─► health            is the space about meaning, or about writing systems?
                   │
                   └─► gap ─► allocation ─► drawing ─► strategies      usage against coverage

Each module is one page of the method (``docs/method.md``) and takes arrays; none of them imports
torch or keeps a random state of its own, and only `language_distances` and `langrank` open files
(installed tables, a trained ranker). Everything that grows with the pool is done
in blocks over arrays that may be memory-mapped.
"""
