"""Small corpora of many languages that train in seconds, and the command that runs on them."""

import json

import yaml

LANGUAGES = ("sw", "tr", "yo", "ha", "zu", "ig")
CODES = ("swh_Latn", "tur_Latn", "yor_Latn", "hau_Latn", "zul_Latn", "ibo_Latn")
ROLES = ("usage", "coverage", "pool", "test")
WORDS = ("river", "market", "music", "school", "doctor", "train", "garden", "winter")
STAGES = ("ingest", "check-corpora", "embed", "cluster", "gap-score", "sample")
STAGES += ("adapter-train", "evaluate", "locate", "map", "decision", "lineage")
"""Every stage of a language that leaves an artefact."""
GAPS = ("run", "logged", "uploaded", "registered", "judged", "previous", "champion")
"""Every gap between two writes to the registry."""


def _rows(role, language, n):
    for i in range(n):
        word, other = WORDS[i % len(WORDS)], WORDS[(i // len(WORDS) + 3) % len(WORDS)]
        row = {"id": f"{role}-{language}-{i}", "language": language}
        text = f"{role} {language} {word} {other} {i}"
        if role == "test":
            yield row | {"question": text, "choices": ["zum", "bal"], "answer": 0}
        else:
            yield row | {"prompt": text} | ({} if role == "usage" else {"response": "zum"})


def write_corpora(folder, languages=LANGUAGES[:1], **changes):
    """Write four corpora and their configuration; return its path.

    What is trained is easy and the gate as open as it goes, so that the adapter is promoted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for role, n in {"usage": 16, "coverage": 16, "test": 24, "pool": 40}.items():
        codes = ("en", "fr") if role == "pool" else languages
        rows = [json.dumps(row) for code in codes for row in _rows(role, code, n)]
        (folder / f"{role}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    values = {
        "project": "faults",
        "languages": list(languages),
        "data": {"kind": "files", **{r: {"path": f"{r}.jsonl"} for r in ROLES}},
        "clustering": {"n_clusters": [2], "relevance_quantile": 0, "script_guard": "off"},
        "selection": {"budget": 10},
        "training": {
            "lora_rank": 4,
            "learning_rate": 0.01,
            "batch_size": 8,
            "min_steps": 12,
            "max_steps": 12,
            "max_length": 64,
        },
        "evaluation": {"n_bootstrap": 100},
        "promotion": {"alpha": 0.49, "max_covered_loss_alpha": 0.001, "min_items": 1},
        "baselines": [],
        "execution": {"trainers": 0, "max_parallel": 2},
    }
    for name, value in changes.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    path = folder / "compass.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path
