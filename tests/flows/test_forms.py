"""The custom-run form of every deployment: what the interface makes of a flow's parameters."""

import importlib

import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from compass_core.config import AdaptConfig, ExecutionConfig
from tasks.deployments import FOLDER

ENTRYPOINTS = [
    deployment["entrypoint"]
    for deployment in yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]
]
FREE_FORM = {"where"}
"""Fields whose keys are the user's own column names: the form asks for JSON."""


def schema_of(entrypoint):
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    return parameter_schema(flow).model_dump_for_openapi()


def resolved(schema, value):
    """Return a property as the form sees it: its own words win over those of what it refers to."""
    if "$ref" not in value:
        return value
    target = schema["definitions"][value["$ref"].rpartition("/")[2]]
    return {**target, **{name: words for name, words in value.items() if name != "$ref"}}


def fields(schema, value, path):
    """Yield (path, property) of every field below `value`, at every depth and in every variant."""
    for name, raw in value.get("properties", {}).items():
        field = resolved(schema, raw)
        yield f"{path}.{name}", field
        yield from fields(schema, field, f"{path}.{name}")
        for variant in field.get("anyOf", ()):
            yield from fields(schema, resolved(schema, variant), f"{path}.{name}")


@pytest.fixture(scope="module", params=ENTRYPOINTS)
def form(request):
    schema = schema_of(request.param)
    found = list(fields(schema, schema, request.param))
    assert len(found) > 100
    return schema, found


def test_every_field_at_every_depth_has_a_readable_name_and_says_what_it_is_for(form):
    for path, field in form[1]:
        assert field.get("title"), path
        assert "Config" not in field["title"], path
        assert "_" not in field["title"], path
        words = field.get("description", "")
        assert len(words.split()) >= 2, f"{path}: {words!r}"
        assert words.rstrip().endswith((".", ")")), f"{path}: {words!r}"


def test_every_field_has_a_type_that_the_form_can_ask_for(form):
    for path, field in form[1]:
        assert "type" in field or field.get("anyOf"), path
        assert not {"oneOf", "allOf", "discriminator"} & field.keys(), path
        if field.get("type") == "object" and not field.get("properties"):
            assert path.rpartition(".")[2] in FREE_FORM, path
        if "const" in field:
            assert field["enum"] == [field["const"]], path


def test_choices_between_kinds_of_values_have_names_a_person_understands(form):
    schema, found = form
    choices = {
        path: [resolved(schema, variant).get("title") for variant in field["anyOf"]]
        for path, field in found
        if "anyOf" in field
    }
    assert choices
    for path, names in choices.items():
        assert all(names), path
        assert not any("Config" in name or name.endswith("Data") for name in names), path
    (data,) = [names for path, names in choices.items() if path.endswith("config.data")]
    assert data == ["Demonstration corpus", "Your own files"]


def test_a_default_is_one_of_the_choices(form):
    chosen = [(path, field) for path, field in form[1] if "enum" in field and "default" in field]
    assert len(chosen) > 10
    for path, field in chosen:
        assert field["default"] in field["enum"], path


def test_a_choice_among_words_explains_each_of_them_or_needs_no_explanation():
    plain = {"strategy", "format", "database_type", "dtype", "unit", "bad_rows", "fit_on", "draw"}
    schema = AdaptConfig.model_json_schema()
    for section in schema["$defs"].values():
        for name, field in section["properties"].items():
            if name in plain or len(field.get("enum", ())) < 2:
                continue
            missing = [v for v in field["enum"] if v not in field["description"]]
            assert len(missing) <= 1, f"{section['title']}.{name} does not explain {missing}"


def test_the_order_of_the_fields_survives_a_database_that_sorts_keys(form):
    schema, _ = form
    groups = [schema, *schema["definitions"].values()]
    for group in groups:
        positions = [field["position"] for field in group["properties"].values()]
        assert positions == list(range(len(positions))), group["title"]


def test_what_a_run_is_about_comes_first_and_what_rarely_changes_last():
    adapt = list(
        schema_of("flows.adapt_languages.adapt_languages")["definitions"]["AdaptConfig"][
            "properties"
        ]
    )
    assert adapt[:5] == ["languages", "project", "seed", "execution", "selection"]
    assert adapt[-3:] == ["data", "monitoring", "update"]
    assert set(adapt) == set(AdaptConfig.model_fields)
    update = schema_of("flows.update_adapter.update_adapter")
    assert list(update["properties"]) == ["language", "event", "config"]
    assert next(iter(ExecutionConfig.model_json_schema()["properties"])) == "dry_run"


def test_the_form_shows_no_new_field_without_a_place_in_the_order():
    ordered = set(AdaptConfig.form_order)
    for entrypoint in ENTRYPOINTS:
        for name, group in schema_of(entrypoint)["definitions"].items():
            if "languages" in group["properties"] or "monitoring" in group["properties"]:
                assert set(group["properties"]) <= ordered, name
