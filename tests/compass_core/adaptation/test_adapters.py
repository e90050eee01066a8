import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compass_core.adaptation.adapters import (
    adapted,
    attach_adapter,
    detach_adapter,
    load_adapter,
    pick_targets,
    save_adapter,
)
from compass_core.adaptation.bases import load_base
from compass_core.adapter_files import adapter_sha256
from compass_core.config import BaseConfig, TrainingConfig
from compass_core.errors import ModelError
from compass_core.storage import sha256_file

TOKENS = torch.arange(1, 25).reshape(2, 12)
CARD = {"language": "swh_Latn", "data": {"selection": "abc"}, "licence": "CC-BY-4.0"}


def logits(model):
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


def scrambled(base, kind="lora", seed=0):
    """Attach an adapter whose weights change the logits."""
    model = attach_adapter(base, TrainingConfig(adapter=kind, lora_rank=4), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(params=["lora", "dora"])
def saved(request, tiny_base, tmp_path):
    """A saved adapter and its logits."""
    model = scrambled(tiny_base, request.param)
    expected = logits(model)
    save_adapter(model, tmp_path / "adapter", CARD, base=tiny_base)
    detach_adapter(model)
    return tmp_path / "adapter", expected


def rewrite_ledger(folder, **changes):
    """Write changes into the ledger and make the hashes fit the files again."""
    ledger = json.loads((folder / "ADAPTER.json").read_text()) | changes
    ledger["files"] = {name: sha256_file(folder / name) for name in ledger["files"]}
    (folder / "ADAPTER.json").write_text(json.dumps(ledger))


def refused(base, folder):
    with pytest.raises(ModelError) as caught:
        load_adapter(base, folder)
    return caught.value


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_detached_base_is_bit_for_bit_what_it_was(tiny_base, kind):
    before = {name: tensor.clone() for name, tensor in tiny_base.model.state_dict().items()}
    expected = logits(tiny_base.model)
    model = scrambled(tiny_base, kind)
    assert not torch.equal(logits(model), expected)
    detach_adapter(model)
    after = tiny_base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(tiny_base.model), expected)
    assert not any(p.requires_grad for p in tiny_base.model.parameters())
    assert not tiny_base.model.training


def test_only_adapter_weights_are_trainable(tiny_base):
    model = attach_adapter(tiny_base, TrainingConfig(adapter="dora", lora_rank=4))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    detach_adapter(model)
    assert names
    assert all("lora_" in name for name in names)
    assert len(names) == 2 * 7 * 3


def test_new_adapter_changes_nothing_yet_and_depends_on_the_seed(tiny_base):
    expected = logits(tiny_base.model)
    drawn = []
    for seed in (0, 0, 1):
        model = attach_adapter(tiny_base, TrainingConfig(lora_rank=4), seed=seed).eval()
        assert torch.allclose(logits(model), expected, atol=1e-6)
        drawn.append(next(p.clone() for n, p in model.named_parameters() if "lora_A" in n))
        detach_adapter(model)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_attaching_leaves_torch_s_random_state_alone(tiny_base):
    state = torch.random.get_rng_state()
    detach_adapter(attach_adapter(tiny_base, TrainingConfig(lora_rank=4)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_default_targets_are_all_linear_layers_but_the_head(tiny_base):
    assert pick_targets(tiny_base.model, ()) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]


def test_unknown_target_is_refused_with_the_nearest_names(tiny_base):
    with pytest.raises(ModelError) as caught:
        pick_targets(tiny_base.model, ("q_prj", "v_proj"))
    assert caught.value.code == "E35"
    assert "q_proj" in caught.value.message
    assert "'v_proj'" not in caught.value.message


def test_saved_adapter_loads_with_equal_logits(tiny_base, saved):
    folder, expected = saved
    with adapted(tiny_base, folder) as model:
        assert torch.equal(logits(model), expected)


def test_saved_adapter_loads_in_plain_peft(tiny_base, saved):
    from peft import PeftModel

    folder, expected = saved
    model = PeftModel.from_pretrained(tiny_base.model, folder).eval()
    found = logits(model)
    detach_adapter(model)
    assert torch.equal(found, expected)


def test_saved_adapter_is_a_small_peft_folder_without_paths(tiny_base_folder, saved):
    folder, _ = saved
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "ADAPTER.json",
    }
    for name in names:
        assert str(tiny_base_folder.parent).encode() not in (folder / name).read_bytes()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "tiny"
    )


def test_ledger_holds_hashes_base_and_card(tiny_base, saved):
    folder, _ = saved
    ledger = json.loads((folder / "ADAPTER.json").read_text())
    assert ledger["base"]["fingerprint"] == tiny_base.fingerprint
    assert ledger["card"] == CARD
    assert all(sha256_file(folder / n) == digest for n, digest in ledger["files"].items())


def test_same_adapter_saved_twice_has_the_same_identity(tiny_base, tmp_path):
    model = scrambled(tiny_base)
    hashes = [save_adapter(model, tmp_path / name, CARD, base=tiny_base) for name in "ab"]
    detach_adapter(model)
    other = scrambled(tiny_base, seed=1)
    hashes.append(save_adapter(other, tmp_path / "c", CARD, base=tiny_base))
    detach_adapter(other)
    assert hashes[0] == hashes[1] == adapter_sha256(tmp_path / "a")
    assert hashes[2] != hashes[0]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
def test_one_flipped_bit_is_noticed(tiny_base, saved, name):
    folder, _ = saved
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(bytes(content))
    assert refused(tiny_base, folder).code == "E29"


def test_missing_ledger_is_refused(tiny_base, saved):
    (saved[0] / "ADAPTER.json").unlink()
    assert refused(tiny_base, saved[0]).code == "E26"


def test_ledger_without_hashes_is_refused(tiny_base, saved):
    ledger = json.loads((saved[0] / "ADAPTER.json").read_text())
    (saved[0] / "ADAPTER.json").write_text(json.dumps(ledger | {"files": {}}))
    assert refused(tiny_base, saved[0]).code == "E29"


def test_adapter_of_another_base_is_refused_with_both_names(tiny_base, saved):
    rewrite_ledger(saved[0], base={"id": "other", "fingerprint": "f" * 64, "revision": ""})
    error = refused(tiny_base, saved[0])
    assert error.code == "E33"
    assert "other" in error.message
    assert tiny_base.fingerprint[:12] in error.message


@pytest.mark.parametrize(
    "change", [{"peft_type": "NOPE"}, {"megatron_config": {"a": 1}, "megatron_core": "os"}]
)
def test_unsupported_adapters_and_foreign_modules_are_refused(tiny_base, saved, change):
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    rewrite_ledger(saved[0])
    assert refused(tiny_base, saved[0]).code == "E34"


def test_non_finite_adapter_is_refused(tiny_base, saved):
    path = saved[0] / "adapter_model.safetensors"
    state = load_file(path)
    state[sorted(state)[0]][0] = float("inf")
    save_file(state, path)
    rewrite_ledger(saved[0])
    assert refused(tiny_base, saved[0]).code == "E30"


def test_adapter_of_another_rank_than_its_config_is_refused(tiny_base, saved):
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
    rewrite_ledger(saved[0])
    assert refused(tiny_base, saved[0]).code == "E31"


def test_pickled_adapter_is_refused(tiny_base, saved):
    (saved[0] / "adapter_model.safetensors").rename(saved[0] / "adapter_model.bin")
    assert refused(tiny_base, saved[0]).code == "E28"


def test_failure_inside_the_block_still_detaches(tiny_base, saved):
    with pytest.raises(KeyError), adapted(tiny_base, saved[0]):
        raise KeyError
    assert not hasattr(tiny_base.model, "peft_config")


def test_base_with_a_forgotten_adapter_is_loaded_again(tiny_base_folder):
    config = BaseConfig(model=str(tiny_base_folder), device="cpu")
    base = load_base(config)
    attach_adapter(base, TrainingConfig(lora_rank=2))
    assert load_base(config) is not base
