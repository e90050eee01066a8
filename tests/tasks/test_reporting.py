"""What the registry says of an attempt in words."""

import pytest

from compass_core.report.data import ArmResult
from tasks import reporting

PAGE = "http://127.0.0.1:4200/runs/flow-run/1"


@pytest.mark.parametrize(
    ("server", "link"),
    [("http://127.0.0.1:4200/api", f"\n\n[The run in Prefect]({PAGE})"), (None, "")],
)
def test_an_attempt_links_to_its_run_where_a_server_keeps_it(monkeypatch, server, link):
    monkeypatch.setattr(reporting.flow_run, "get_flow_run_ui_url", lambda: PAGE)
    monkeypatch.setattr(reporting, "server_address", lambda: server)
    score = ArmResult("compass", accuracy=0.8141, n_items=382)
    said = reporting._note("swh_Latn", "compass", score)
    words = "Swahili (swh_Latn), strategy compass: accuracy 81.4% on 382 test items."
    assert said == words + link
