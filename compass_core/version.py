"""The version of COMPASS."""

__version__ = "0.1.0"
