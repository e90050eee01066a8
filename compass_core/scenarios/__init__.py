"""Cases with a planted answer: what a selection or a drift check must find, and what it must not.

A file of cases (``scenarios.json``) names existing rows, usage rows and a pool by their ids in real
data, and says which topics the selection must over-represent. `run_case` selects as the product
does, with an encoder that is fitted on the spot from parallel rows the case has nothing to do with.
A drift case names a reference and windows of usage; `check_drift_case` checks them likewise.
"""

from compass_core.scenarios.cases import Case, read_cases
from compass_core.scenarios.data import DataFolder
from compass_core.scenarios.drift import DriftOutcome, check_drift_case, prepare_drift_case
from compass_core.scenarios.running import Outcome, PreparedCase, prepare_case, select_case

__all__ = [
    "Case",
    "DataFolder",
    "DriftOutcome",
    "Outcome",
    "PreparedCase",
    "check_drift_case",
    "prepare_case",
    "prepare_drift_case",
    "read_cases",
    "select_case",
]
