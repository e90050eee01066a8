"""Thin tasks: references in, one call of the core, references out."""
