"""An encoder of hashed character n-grams, fitted on parallel rows without any download."""

from compass_core.ngram_encoder.fitting import NgramRecipe, fit_ngram_encoder

__all__ = ["NgramRecipe", "fit_ngram_encoder"]
