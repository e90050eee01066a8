"""What people ask of the catalog: what was selected for a language, from where, and why."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from compass_core.errors import DataError
from compass_core.manifests.catalog import CatalogFile, Parameters

LAST = "last"
"""Stands for the newest run that has what was asked for."""

_MAX_NAMES_SHOWN = 10
_JSON_COLUMNS = ("config", "inputs", "provenance", "detail")

_MAIN_FIRST = "link.arm = coalesce(runs.main_arm, 'compass') DESC, link.arm = '' DESC, link.arm"

_LINKED = f"""
    SELECT link.fingerprint, link.run_id, link.arm
    FROM run_artifacts AS link JOIN runs USING (run_id)
    WHERE link.language = $language AND link.kind = 'sample'
      AND ($run_id = 'last' OR link.run_id = $run_id)
      AND ($arm IS NULL OR link.arm = $arm)
    ORDER BY runs.started DESC NULLS LAST, link.run_id DESC, {_MAIN_FIRST}
    LIMIT 1
"""


class Catalog(CatalogFile):
    """The catalog of one COMPASS home, and the questions it answers.

    `language` is always the canonical code. `run_id` is ``last`` (the newest run that selected for
    the language) or a run's id. `arm` None means the strategy the run asked for, a name one of its
    baselines.
    """

    def runs(self) -> list[dict[str, Any]]:
        """Return every run, newest first, with the state of each of its languages."""
        return self._rows(
            """
            SELECT run_id, started, finished, config_path, languages,
                   (SELECT list(s.language || ' ' || s.status ORDER BY s.language)
                    FROM run_languages AS s WHERE s.run_id = runs.run_id) AS states
            FROM runs ORDER BY started DESC NULLS LAST, run_id DESC
            """
        )

    def selection_summary(
        self, language: str, run_id: str = LAST, arm: str | None = None
    ) -> dict[str, Any]:
        """Return how the selection was made and what came out, as one record.

        Raises:
            DataError: no such selection; the message names the languages that have one.
        """
        fingerprint, run, found_arm = self._selection(language, run_id, arm)
        (row,) = self._rows(
            """
            SELECT s.*, c.n_gap_clusters, e.licences, e.n_prompt_characters
            FROM selections AS s,
              (SELECT count(*) FILTER (gap > 0) AS n_gap_clusters
               FROM clusters WHERE fingerprint = $fingerprint) AS c,
              (SELECT list(DISTINCT licence ORDER BY licence) AS licences,
                      sum(length(prompt) + length(response)) AS n_prompt_characters
               FROM selected_examples WHERE fingerprint = $fingerprint) AS e
            WHERE s.fingerprint = $fingerprint
            """,
            {"fingerprint": fingerprint},
        )
        n_characters = row.pop("n_prompt_characters")
        return {
            "run_id": run,
            "arm": found_arm,
            **row,
            "licences": row["licences"] or [],
            "n_characters": int(n_characters or 0),
        }

    def by_source_language(
        self, language: str, run_id: str = LAST, arm: str | None = None
    ) -> pa.Table:
        """Return one row per source language: examples, share, clusters, distance, licences."""
        return self._about_selection(
            """
            SELECT source_language, count(*) AS n_examples,
                   count(*) / sum(count(*)) OVER () AS share,
                   count(DISTINCT cluster) AS n_clusters,
                   avg(distance) AS mean_distance,
                   list(DISTINCT licence ORDER BY licence) AS licences
            FROM selected_examples WHERE fingerprint = $fingerprint
            GROUP BY source_language ORDER BY n_examples DESC, source_language
            """,
            language,
            run_id,
            arm,
        )

    def by_cluster(self, language: str, run_id: str = LAST, arm: str | None = None) -> pa.Table:
        """Return one row per cluster, widest gap first, with its three main source languages."""
        return self._about_selection(
            """
            WITH counted AS (
                SELECT cluster, source_language, count(*) AS n,
                       row_number() OVER (
                           PARTITION BY cluster ORDER BY count(*) DESC, source_language) AS place
                FROM selected_examples WHERE fingerprint = $fingerprint
                GROUP BY cluster, source_language),
            named AS (
                SELECT cluster, string_agg(source_language || ' ' || n, ', ' ORDER BY place)
                       AS sources
                FROM counted WHERE place <= 3 GROUP BY cluster)
            SELECT clusters.* EXCLUDE (fingerprint), coalesce(sources, '') AS sources
            FROM clusters LEFT JOIN named USING (cluster)
            WHERE fingerprint = $fingerprint ORDER BY gap DESC, cluster
            """,
            language,
            run_id,
            arm,
        )

    def by_reason(self, language: str, run_id: str = LAST, arm: str | None = None) -> pa.Table:
        """Return why examples were taken, most frequent reason first."""
        return self._about_selection(
            """
            SELECT reason, count(*) AS n_examples
            FROM selected_examples WHERE fingerprint = $fingerprint
            GROUP BY reason ORDER BY n_examples DESC, reason
            """,
            language,
            run_id,
            arm,
        )

    def examples(
        self,
        language: str,
        run_id: str = LAST,
        limit: int = 20,
        *,
        source_language: str | None = None,
        cluster: int | None = None,
        arm: str | None = None,
    ) -> pa.Table:
        """Return selected examples in the order they were drawn, with their cluster's label."""
        return self._about_selection(
            """
            SELECT e.* EXCLUDE (fingerprint, position), c.label
            FROM selected_examples AS e
            LEFT JOIN clusters AS c USING (fingerprint, cluster)
            WHERE fingerprint = $fingerprint
              AND ($source_language IS NULL OR source_language = $source_language)
              AND ($cluster IS NULL OR cluster = $cluster)
            ORDER BY position LIMIT $limit
            """,
            language,
            run_id,
            arm,
            source_language=source_language,
            cluster=cluster,
            limit=limit,
        )

    def source_matrix(self, run_id: str = LAST) -> pa.Table:
        """Return examples per target and source language of one run (the heat map's cells)."""
        return self.query(
            f"""
            WITH chosen AS (
                SELECT link.language, link.fingerprint,
                       row_number() OVER (PARTITION BY link.language ORDER BY {_MAIN_FIRST}) AS nth
                FROM run_artifacts AS link JOIN runs USING (run_id)
                WHERE link.kind = 'sample' AND run_id = (
                    SELECT r.run_id FROM runs AS r JOIN run_artifacts AS a USING (run_id)
                    WHERE a.kind = 'sample' AND ($run_id = 'last' OR r.run_id = $run_id)
                    ORDER BY r.started DESC NULLS LAST, r.run_id DESC LIMIT 1))
            SELECT language, source_language, count(*) AS n_examples
            FROM chosen JOIN selected_examples USING (fingerprint) WHERE nth = 1
            GROUP BY language, source_language ORDER BY language, source_language
            """,
            {"run_id": run_id},
        )

    def evaluations(self, language: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """Return the scores of a language by run and arm, newest run first; of one if `run_id`."""
        return self._rows(
            """
            SELECT link.run_id, runs.started, link.arm, e.*
            FROM run_artifacts AS link JOIN runs USING (run_id)
            JOIN evaluations AS e ON e.fingerprint = link.fingerprint
            WHERE link.kind = 'evaluate' AND link.language = $language
              AND ($run_id IS NULL OR link.run_id = $run_id)
            ORDER BY runs.started DESC NULLS LAST, link.run_id DESC, link.arm
            """,
            {"language": language, "run_id": run_id},
        )

    def decisions(self, language: str | None = None) -> list[dict[str, Any]]:
        """Return what was decided in each run, newest first; of every language if None."""
        return self._rows(
            """
            SELECT s.run_id, runs.started, s.language, s.status, s.promote, s.reasons, s.p_value,
                   s.champion_before, s.model, s.version, s.tracking_run_id,
                   d.n_items, d.wins, d.losses, d.accuracy_before, d.accuracy_after, d.detail
            FROM run_languages AS s JOIN runs USING (run_id)
            LEFT JOIN run_artifacts AS link
              ON link.run_id = s.run_id AND link.language = s.language AND link.kind = 'decision'
            LEFT JOIN decisions AS d ON d.fingerprint = link.fingerprint
            WHERE s.promote IS NOT NULL AND ($language IS NULL OR s.language = $language)
            ORDER BY runs.started DESC NULLS LAST, s.run_id DESC, s.language
            """,
            {"language": language},
        )

    def drift_windows(self, language: str | None = None) -> list[dict[str, Any]]:
        """Return the decided windows of usage, oldest first; of every language if None."""
        return self._rows(
            """
            SELECT * FROM drift_windows WHERE $language IS NULL OR language = $language
            ORDER BY language, window_start, window_name, decided
            """,
            {"language": language},
        )

    def _rows(self, sql: str, parameters: Parameters = ()) -> list[dict[str, Any]]:
        return [_decoded(row) for row in self.query(sql, parameters).to_pylist()]

    def _about_selection(
        self, sql: str, language: str, run_id: str, arm: str | None, **parameters: Any
    ) -> pa.Table:
        fingerprint, _, _ = self._selection(language, run_id, arm)
        return self.query(sql, {"fingerprint": fingerprint, **parameters})

    def _selection(self, language: str, run_id: str, arm: str | None) -> tuple[str, str, str]:
        found = self._rows(_LINKED, {"language": language, "run_id": run_id, "arm": arm})
        if found:
            return found[0]["fingerprint"], found[0]["run_id"], found[0]["arm"]
        rows = self._rows(
            "SELECT DISTINCT language, run_id FROM run_artifacts WHERE kind = 'sample' "
            "ORDER BY language, run_id DESC"
        )
        raise DataError(_nothing_selected(language, run_id, arm, rows), code="E51")


def _nothing_selected(
    language: str, run_id: str, arm: str | None, rows: list[dict[str, str]]
) -> str:
    asked = f"the arm {arm!r} of " if arm else ""
    where = "any run" if run_id == LAST else f"run {run_id}"
    own = [row["run_id"] for row in rows if row["language"] == language]
    if own:
        have = f"Runs with a selection for it: {_some(own)}."
    elif rows:
        have = f"Languages with a selection: {_some(sorted({row['language'] for row in rows}))}."
    else:
        have = "No run has selected anything yet; run `compass adapt` first."
    return f"Nothing was selected for {asked}{language} in {where}. {have}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    rest = len(names) - _MAX_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with its JSON columns as values."""
    return {
        name: json.loads(value) if name in _JSON_COLUMNS and value is not None else value
        for name, value in row.items()
    }
