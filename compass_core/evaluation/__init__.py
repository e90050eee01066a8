"""Scoring of test items, paired comparisons, and the gate in front of the champion."""
