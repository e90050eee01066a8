"""What needs no model at all, measured on the same items: a floor under every accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compass_core.records import Example


def majority(items: Sequence[Example], known: Sequence[Example]) -> NDArray[np.bool_]:
    """Answer every item with its choice that is the most frequent response in `known`.

    Args:
        items: Multiple-choice items.
        known: Training examples.

    Returns:
        (N,) whether each item is answered correctly; ties go to the first choice.

    Examples:
        >>> known = [Example("1", "eng_Latn", "?", "b"), Example("2", "eng_Latn", "?", "b")]
        >>> item = Example("3", "eng_Latn", "?", "b", choices=("a", "b"), answer_index=1)
        >>> majority([item], known)
        array([ True])
    """
    counts = Counter(example.response for example in known)
    return _right([[float(counts[c]) for c in item.choices] for item in items], items)


def string_overlap(items: Sequence[Example], known: Sequence[Example]) -> NDArray[np.bool_]:
    """Answer every item like the training example whose prompt looks most alike.

    Likeness is the cosine of character-trigram counts; a choice scores as the most similar prompt
    that has it as its response.

    Args:
        items: Multiple-choice items.
        known: Training examples.

    Returns:
        (N,) whether each item is answered correctly; ties go to the first choice.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    if not known or not items:
        return np.zeros(len(items), dtype=np.bool_)
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 3), n_features=2**18, alternate_sign=False
    )
    prompts = vectorizer.transform([example.prompt for example in known])
    likeness = (vectorizer.transform([item.prompt for item in items]) @ prompts.T).toarray()
    responses = np.asarray([example.response for example in known])
    rows_of = {text: np.flatnonzero(responses == text) for text in set(responses.tolist())}
    scores = [
        [float(row[rows_of[c]].max()) if c in rows_of else -1.0 for c in item.choices]
        for item, row in zip(items, likeness, strict=True)
    ]
    return _right(scores, items)


def _right(scores: Sequence[Sequence[float]], items: Sequence[Example]) -> NDArray[np.bool_]:
    chosen = [int(np.argmax(row)) for row in scores]
    pairs = zip(chosen, items, strict=True)
    return np.asarray([choice == item.answer_index for choice, item in pairs], dtype=np.bool_)
