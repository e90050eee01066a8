"""Flows: one file, one flow, one deployment."""
