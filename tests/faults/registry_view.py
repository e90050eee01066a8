"""What a registry holds, as plain values."""

from tasks import registry, tracking
from tasks.promotion import configure_tracking


def view():
    """Return, by model, its versions with their hash and its aliases; and how every run ended."""
    configure_tracking()
    client = tracking.client()
    found = {}
    for model in client.search_registered_models():
        champion, challenger = registry.champion(model.name), registry.challenger(model.name)
        found[model.name] = {
            "versions": {v.version: v.adapter_sha256 for v in registry.versions(model.name)},
            "champion": champion.version if champion else None,
            "challenger": challenger.version if challenger else None,
        }
    runs = [
        run.info.status
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    return {"models": found, "runs": sorted(runs)}
