import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from compass_core.adaptation.bases import (
    base_fingerprint,
    base_slug,
    check_base,
    is_local,
    load_base,
)
from compass_core.config import BaseConfig
from compass_core.errors import CompassError, ModelError


@pytest.fixture
def folder(tiny_base_folder, tmp_path):
    """A private copy of the tiny base."""
    return shutil.copytree(tiny_base_folder, tmp_path / "tiny")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder):
    with pytest.raises(ModelError) as caught:
        check_base(str(folder))
    return caught.value


def test_whole_base_passes(folder):
    check_base(str(folder))


def test_hub_id_is_not_looked_for_on_the_disk():
    assert not is_local("Qwen/Qwen2.5-0.5B")
    check_base("Qwen/Qwen2.5-0.5B")


def test_missing_folder_is_refused_with_the_nearest_name(folder):
    error = refused(folder.with_name("tinny"))
    assert error.code == "E26"
    assert "Near it: tiny" in error.message


def test_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert refused(folder).code == "E26"


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert refused(folder).code == "E26"


def test_pickle_weights_alone_are_refused_and_the_remedy_named(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refused(folder)
    assert error.code == "E28"
    assert "save_pretrained" in error.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(folder, name):
    change_json(folder / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert refused(folder).code == "E27"


def test_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert refused(folder).code == "E32"


def test_config_and_embedding_of_other_sizes_are_refused(folder):
    change_json(folder / "config.json", vocab_size=100)
    error = refused(folder)
    assert error.code == "E32"
    assert "vocab_size=100" in error.message


def test_tokenizer_larger_than_the_embedding_is_refused(folder):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 5000, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    error = refused(folder)
    assert error.code == "E32"
    assert "5001 tokens" in error.message


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b + b"x", lambda b: b[:4]])
def test_cut_or_prolonged_weights_are_refused(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert refused(folder).code == "E29"


def test_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in refused(folder).message


def test_non_finite_weights_are_refused_when_loaded(folder):
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_base(BaseConfig(model=str(folder)))
    assert caught.value.code == "E30"
    assert name in caught.value.message


def test_missing_tensor_is_refused_instead_of_drawn_at_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load_base(BaseConfig(model=str(folder)))


def test_shapes_that_contradict_the_config_are_refused(folder):
    change_json(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError) as caught:
        load_base(BaseConfig(model=str(folder)))
    assert caught.value.code == "E31"


def test_half_precision_weights_are_float32_on_a_cpu(folder):
    tensors = load_file(folder / "model.safetensors")
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", dtype="float16")
    base = load_base(BaseConfig(model=str(folder), device="cpu"))
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}


def test_loaded_base_is_frozen_in_eval_mode_and_shared(tiny_base_folder):
    config = BaseConfig(model=str(tiny_base_folder), device="cpu")
    base = load_base(config)
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert load_base(config) is base


def test_loaded_base_tells_no_path_of_this_machine(tiny_base):
    assert tiny_base.name == "tiny"
    assert "/" not in tiny_base.model.name_or_path


def test_resolved_path_replaces_the_configured_name(tiny_base_folder):
    assert load_base(BaseConfig(model="starter"), tiny_base_folder).name == "tiny"


def test_unknown_device_is_refused(tiny_base_folder):
    with pytest.raises(ModelError, match="Use `auto` or `cpu`"):
        load_base(BaseConfig(model=str(tiny_base_folder), device="cuda:93"))


def test_fingerprint_follows_weights_config_and_tokenizer_only(folder):
    before = base_fingerprint(str(folder))
    (folder / "README.md").write_text("hello")
    assert base_fingerprint(str(folder)) == before
    change_json(folder / "tokenizer_config.json", model_max_length=77)
    assert base_fingerprint(str(folder)) != before


def test_fingerprint_does_not_depend_on_the_place(folder, tiny_base_folder):
    assert base_fingerprint(str(folder)) == base_fingerprint(str(tiny_base_folder))


def test_slug_is_lower_case_with_a_hash_for_folders_only(folder):
    assert base_slug("Qwen/Qwen2.5-0.5B") == "qwen-qwen2-5-0-5b"
    moved = folder.rename(folder.with_name("My Model_1"))
    assert base_slug(str(moved)) == f"my-model-1-{base_fingerprint(str(moved))[:6]}"
    assert base_slug(str(moved), "starter").startswith("starter-")


def test_unreachable_hub_fails_with_the_causes_to_look_at(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CompassError) as caught:
        load_base(BaseConfig(model="nobody/nothing-of-the-kind"))
    assert caught.value.code == "E24"
    assert "HF_HUB_OFFLINE" in caught.value.message
    assert "gated" in caught.value.message


def test_commit_of_a_hub_model_needs_no_network():
    commit = "a" * 40
    assert base_fingerprint("Qwen/Qwen2.5-0.5B", commit) == f"Qwen/Qwen2.5-0.5B@{commit}"
