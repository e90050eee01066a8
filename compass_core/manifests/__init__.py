"""DuckDB over the artefact store: which examples were selected, from where, and why.

The store is the truth; the catalog is a view of it that may be deleted at any time.

    catalog = Catalog(home)
    catalog.extend(home / "runs" / run_id / "run.json")
    catalog.selection_summary("swh_Latn")
    catalog.by_source_language("swh_Latn").to_pylist()
"""

from compass_core.manifests.catalog import CATALOG_NAME, IndexReport
from compass_core.manifests.queries import LAST, Catalog

__all__ = ["CATALOG_NAME", "LAST", "Catalog", "IndexReport"]
