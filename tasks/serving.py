"""What serves each language, how to answer with it, and how to go back."""

from __future__ import annotations

from pathlib import Path

from compass_core.adaptation.bases import base_fingerprint
from compass_core.adaptation.jobs import generate_job
from compass_core.config import BaseConfig
from compass_core.errors import ModelError
from compass_core.languages import language_name
from tasks import registry
from tasks.caching import ModelRef
from tasks.ingestion import model_path
from tasks.promotion import configure_tracking, registered_name
from tasks.settings import compass_home


def roll_back_language(language: str) -> list[tuple[str, str | None]]:
    """Put the previous champion back on every base that has one; return name and version."""
    configure_tracking()
    serving = [s for s in registry.list_serving([language]) if s.champion is not None]
    if not serving:
        raise ModelError(
            f"No adapter serves {language_name(language)} ({language}), so there is nothing to "
            "roll back. `compass status` shows what serves.",
            code="E53",
        )
    results = []
    for entry in serving:
        assert entry.champion is not None
        now = registry.rollback(entry.name, expected_champion=entry.champion.version)
        results.append((entry.name, now.version if now else None))
    return results


def generate(prompt: str, language: str, *, alias: str, base: str, max_new_tokens: int) -> str:
    """Answer one prompt with a registered adapter, its files verified.

    Raises:
        ModelError: nothing is registered for the language, or several bases are and none is named.
    """
    configure_tracking()
    version = _find(language, alias, base)
    name = base or version.tags.get("base", "starter")
    path = model_path(name, Path.cwd())
    folder = compass_home() / "serving" / version.adapter_sha256[:32]
    registry.fetch_adapter(version, folder)
    return generate_job(
        {
            "base": BaseConfig(
                model=path, revision=version.tags.get("base_revision", "")
            ).model_dump(mode="json"),
            "adapter_folder": str(folder),
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
        }
    )


def _find(language: str, alias: str, base: str) -> registry.RegisteredAdapter:
    models = registry.list_serving([language])
    if base:
        path = model_path(base, Path.cwd())
        wanted = registered_name(base, ModelRef(path, base_fingerprint(path)), language)
        models = [model for model in models if model.name == wanted]
    if len(models) != 1:
        names = ", ".join(model.name for model in models)
        raise ModelError(
            f"Several bases have adapters for {language}: {names}. Name one with --base."
            if models
            else f"No adapter is registered for {language_name(language)} ({language}). "
            "Run `compass adapt` first; `compass status` shows what serves.",
            code="E53",
        )
    name = models[0].name
    found = registry.get_version(name, alias) if alias.isdigit() else registry.by_alias(name, alias)
    if found is None:
        raise ModelError(
            f"{name} has no {alias!r}. It has: {_aliases(models[0])}. Name one with --alias; "
            "without a champion the base alone serves.",
            code="E53",
        )
    return found


def _aliases(model: registry.Serving) -> str:
    known = {
        "champion": model.champion,
        "challenger": model.challenger,
        "previous": model.previous,
    }
    return ", ".join(f"{name} (version {v.version})" for name, v in known.items() if v) or "nothing"
