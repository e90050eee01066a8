"""A page to look at: ``COMPASS_REPORT_SAMPLE=<folder> pytest -k sample`` leaves it there."""

from __future__ import annotations

import os
from pathlib import Path

from compass_core.report.data import RunReport, from_json, summarise_run
from compass_core.report.page import render_index, write_report


def test_sample_page_is_written_beside_the_data_it_was_made_from(
    sample_run: RunReport, tmp_path: Path
) -> None:
    folder = Path(os.environ.get("COMPASS_REPORT_SAMPLE", tmp_path))
    page = write_report(sample_run, folder)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert from_json((folder / "report.json").read_text(encoding="utf-8")) == sample_run
    index = render_index([summarise_run(sample_run, "report.html")])
    (folder / "index.html").write_text(index, encoding="utf-8")
