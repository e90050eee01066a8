"""Strategies are found by file name, or offered by an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compass_core.selection import registry

NAMES = (
    "compass",
    "all-data",
    "dsir",
    "english",
    "langrank",
    "langsim",
    "nearest",
    "proportional",
    "random",
    "similar",
    "target-only",
)


def offer(folder: Path, *entries: str) -> Path:
    """Write what pip would for a package `house-strategies` with these entry points."""
    info = folder / "house_strategies-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-strategies\nVersion: 2.0\n")
    points = "\n".join(["[compass.strategies]", *entries])
    (info / "entry_points.txt").write_text(points + "\n")
    (folder / "house.py").write_text(
        "from compass_core.selection.strategies.target_only import select\nnumber = 3\n"
    )
    return folder


def ask(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )
    return done.stdout + done.stderr


def test_our_names_are_the_files_of_the_folder():
    assert tuple(registry._own_files()) == NAMES
    assert registry.strategy_names()[: len(NAMES)] == NAMES


def test_a_file_with_an_underscore_in_front_is_no_strategy():
    assert "-filling" not in registry.strategy_names()


def test_an_installed_package_offers_a_strategy_by_entry_point(tmp_path):
    folder = offer(tmp_path, "house-mix = house:select")
    answer = ask(
        folder,
        "from compass_core.config import STRATEGIES, SelectionConfig\n"
        "from compass_core.selection.registry import find_strategy, strategy_version\n"
        "print(STRATEGIES[-1], SelectionConfig(strategy='house-mix').strategy)\n"
        "print(find_strategy('house-mix').__name__, strategy_version('house-mix'))\n"
        "enum = SelectionConfig.model_json_schema()['properties']['strategy']['enum']\n"
        "print('house-mix' in enum)",
    )
    assert answer.split("\n")[:3] == [
        "house-mix house-mix",
        "select house-strategies 2.0 house:select",
        "True",
    ]


def test_an_installed_package_cannot_take_the_name_of_a_baseline(tmp_path):
    folder = offer(tmp_path, "random = house:select", "Bad_Name = house:select")
    answer = ask(
        folder,
        "import compass_core.selection.registry as r\n"
        "print(r.strategy_names(), r.find_strategy('random').__module__)",
    )
    assert str(NAMES) in answer
    assert "compass_core.selection.strategies.random" in answer
    assert "'random' of the package house-strategies is ignored" in answer
    assert "'Bad_Name' of the package house-strategies is ignored" in answer


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("house-mix = house:nothing", "AttributeError"),
        ("house-mix = nowhere:select", "ModuleNotFoundError"),
        ("house-mix = house:number", "is not a function"),
    ],
)
def test_a_strategy_that_cannot_be_loaded_names_its_package(tmp_path, entry, told):
    folder = offer(tmp_path, entry)
    answer = ask(
        folder,
        "from compass_core.selection.registry import find_strategy\n"
        "from compass_core.errors import ConfigError\n"
        "try:\n    find_strategy('house-mix')\nexcept ConfigError as error:\n    print(error)",
    )
    assert answer.startswith("E42 The strategy 'house-mix' of the package house-strategies")
    assert told in answer


def test_the_example_of_the_document_is_a_strategy():
    page = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    answer = ask(
        Path(),
        f"{code}\n"
        "from compass_core.selection import strategies\n"
        "from compass_core.selection.drawing import example_keys\n"
        "from compass_core.selection.gap import GapTable\n"
        "strategies.find_strategy = lambda name: select\n"
        "clusters = np.arange(6) % 2\n"
        "problem = SelectionProblem(language='swh_Latn', pool_keys=example_keys('abcdef'),\n"
        "    pool_languages=np.full(6, 'eng_Latn'), pool_cluster_ids=clusters,\n"
        "    pool_distances=np.zeros(6), available=np.full(6, True),\n"
        "    allowed=np.array([True, True, False, True, True, True]),\n"
        "    gap=GapTable.from_assignments(clusters, clusters, clusters, 2),\n"
        "    pool_texts=lambda: iter([['a', 'aaa', 'aaaaa'], ['aa', '', 'aaaa']]))\n"
        "chosen = strategies.select_examples('mine', problem, 3, np.random.default_rng(0))\n"
        "print(chosen.indices.tolist(), chosen.reasons[0])",
    )
    assert answer.strip() == "[1, 3, 5] 3 characters"


def test_asking_for_names_imports_no_numerics():
    code = (
        "import sys; from compass_core.selection.registry import strategy_names; strategy_names(); "
        "print(sorted({'numpy', 'pyarrow', 'lightgbm', 'sklearn'} & set(sys.modules)))"
    )
    assert ask(Path(), code).strip() == "[]"
