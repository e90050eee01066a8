"""Reports a person reads: one HTML page per run, short tables for UIs and the terminal."""
