"""load_model: the same numbers as Hugging Face on every wrapper, and refusals by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mechinterp_toolkit.checkpoint import fingerprint, write_checkpoint
from mechinterp_toolkit.errors import CheckpointError, NotApplicable, TokenisationError
from mechinterp_toolkit.model import HookedModel, has_hooked_transformer, load_model

# Two implementations of the same float32 arithmetic in another order; measured 2e-7 to 1e-6 on
# these models.
SAME_LOGITS = 1e-5
SAME_LOG_PROBS = 1e-4

SHAPES = ["gpt2", "neox", "llama"]


def hf_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return (
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
            .eval()(tokens)
            .logits
        )


@pytest.fixture
def folder(hf_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A GPT-2-shaped folder a test may damage."""
    return Path(shutil.copytree(hf_folders["gpt2"], tmp_path / "damaged"))


@pytest.mark.parametrize("wrapper", ["auto", "TransformerBridge"])
@pytest.mark.parametrize("shape", SHAPES)
def test_raw_logits_are_those_of_hugging_face(hf_folders, tokens, shape, wrapper):
    model = load_model(hf_folders[shape], wrapper=wrapper)
    with torch.no_grad():
        assert (
            model.logits(tokens) - hf_logits(hf_folders[shape], tokens)
        ).abs().max() < SAME_LOGITS
    assert model.provenance.processing == "none"


@pytest.mark.parametrize("wrapper", ["auto", "TransformerBridge"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compatible_processing_keeps_log_probabilities_and_centres_logits(
    hf_folders, tokens, shape, wrapper
):
    model = load_model(hf_folders[shape], wrapper=wrapper, processing="compatible")
    with torch.no_grad():
        logits, reference = model.logits(tokens), hf_logits(hf_folders[shape], tokens)
    assert (logits.log_softmax(-1) - reference.log_softmax(-1)).abs().max() < SAME_LOG_PROBS
    assert logits.mean(-1).abs().max() < SAME_LOGITS < reference.mean(-1).abs().max()


def test_auto_takes_hooked_transformer_where_it_exists(hf_folders):
    expected = "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"
    assert load_model(hf_folders["gpt2"]).provenance.wrapper == expected
    assert load_model(hf_folders["neox"]).provenance.wrapper == expected
    assert load_model(hf_folders["llama"]).provenance.wrapper == "TransformerBridge"


def test_left_padded_prompts_with_their_mask_give_the_logits_of_the_prompt_alone(wrapped, tokens):
    padded = torch.cat([torch.zeros(4, 3, dtype=torch.long), tokens], dim=1)
    mask = torch.cat(
        [torch.zeros(4, 3, dtype=torch.bool), torch.ones(4, 7, dtype=torch.bool)], dim=1
    )
    with torch.no_grad():
        alone, masked, unmasked = (
            wrapped.logits(tokens)[:, -1],
            wrapped.logits(padded, mask)[:, -1],
            wrapped.logits(padded)[:, -1],
        )
    assert (masked - alone).abs().max() < SAME_LOGITS
    assert (
        unmasked - alone
    ).abs().max() > 100 * SAME_LOGITS  # without the mask the answer is another one


def test_pythia_shapes_get_no_bos_by_default_and_gpt2_shapes_do(hf_folders):
    assert load_model(hf_folders["gpt2"]).provenance.prepend_bos is True
    assert load_model(hf_folders["neox"]).provenance.prepend_bos is False
    assert load_model(hf_folders["neox"], prepend_bos=True).provenance.prepend_bos is True


def test_fingerprint_does_not_depend_on_wrapper_or_processing_but_on_every_weight(hf_folders):
    marks = {
        load_model(hf_folders["gpt2"], wrapper=w, processing=p).provenance.fingerprint
        for w in ("auto", "TransformerBridge")
        for p in ("none", "compatible")
    }
    assert len(marks) == 1
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))
    for changed in (
        {**state, "b": torch.tensor([1.0, 1.0 + 1e-7])},
        {**state, "a": torch.zeros(3, 2)},
    ):
        assert fingerprint(changed) != fingerprint(state)


def test_a_random_twin_has_other_weights_the_same_shape_and_its_seed(hf_folders, tokens):
    model = load_model(hf_folders["neox"])
    twin, again, other = (model.random_twin(seed) for seed in (1, 1, 2))
    assert (
        twin.provenance.fingerprint == again.provenance.fingerprint != other.provenance.fingerprint
    )
    assert twin.provenance.fingerprint != model.provenance.fingerprint
    assert twin.logits(tokens).shape == model.logits(tokens).shape
    assert "random weights, seed 1" in twin.provenance.checkpoint


def test_a_twin_is_asked_about_the_task_of_its_model_and_has_no_training_record():
    model = load_model("toy/addition-mod")
    twin = model.random_twin(0)
    assert twin.provenance.training == {"task": model.provenance.training["task"]}
    assert load_model("toy/s5").random_twin(0).provenance.training["task"]["kind"] == "group"


def test_making_a_twin_leaves_the_global_random_state_alone(hf_folders):
    model = load_model(hf_folders["gpt2"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.random_twin(0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("wrapper", ["auto", "TransformerBridge"])
def test_loading_leaves_the_global_random_state_alone(hf_folders, wrapper):
    before = torch.get_rng_state()
    load_model(hf_folders["gpt2"], wrapper=wrapper)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_hugging_face_object_is_wrapped_and_left_as_it_was(hf_folders, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained(
        hf_folders["gpt2"], attn_implementation="eager"
    ).eval()
    before = hf_model(tokens).logits
    tokenizer = AutoTokenizer.from_pretrained(hf_folders["gpt2"])
    model = load_model(
        hf_model, tokenizer=tokenizer, wrapper="TransformerBridge", processing="compatible"
    )
    assert model.tokenizer is tokenizer
    assert torch.equal(hf_model(tokens).logits, before)


def test_a_transformer_lens_object_is_taken_as_it_is_with_unknown_processing(wrapped, tokens):
    again = load_model(wrapped.model)
    assert again.model is wrapped.model
    assert again.provenance.processing == "unknown"
    with pytest.raises(NotApplicable, match="no random-weight twin"):
        again.random_twin(0)


def test_a_hooked_model_passes_through(wrapped):
    assert load_model(wrapped) is wrapped


def test_state_dict_file_beside_its_config_loads_to_the_same_logits(folder, tokens):
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "weights.pt")
    for name in ("weights.pt", "model.safetensors"):
        model = load_model(folder / name)
        with torch.no_grad():
            assert (model.logits(tokens) - hf_logits(folder, tokens)).abs().max() < SAME_LOGITS


def test_tokenizer_is_the_folders_own(hf_folders):
    assert load_model(hf_folders["gpt2"]).require_tokenizer().encode(
        "w5 w7", add_special_tokens=False
    ) == [5, 7]


def test_a_folder_without_a_tokenizer_loads_and_refuses_text(folder, tokens):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    model = load_model(folder)
    assert model.tokenizer is None
    assert model.logits(tokens).shape == (4, 7, 60)
    with pytest.raises(TokenisationError, match="without a tokenizer"):
        model.require_tokenizer()


def test_a_missing_folder_is_refused_by_its_path():
    with pytest.raises(CheckpointError, match=r"no folder or file '\./nowhere/model'"):
        load_model("./nowhere/model")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither checkpoint\.json nor config\.json"):
        load_model(tmp_path)


def test_a_hub_name_offline_says_what_to_check():
    with pytest.raises(
        CheckpointError, match=r"'no-one/no-model' is neither a folder here nor.*HF_HUB_OFFLINE"
    ):
        load_model("no-one/no-model")


def test_a_revision_of_a_local_folder_is_refused(hf_folders):
    for call in (
        lambda: load_model(hf_folders["gpt2"], revision="step3"),
        lambda: load_model(f"{hf_folders['gpt2']}@step3"),
    ):
        with pytest.raises(CheckpointError, match=r"revision \('step3'\).*local folder"):
            call()


def test_truncated_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(folder)


def test_missing_weights_are_refused_and_not_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of the model's weights.*h\.1\.mlp\.c_fc\.weight"
    ):
        load_model(folder)
    with pytest.raises(CheckpointError, match="1 weights missing"):
        load_model(folder / "model.safetensors")


def test_non_finite_weights_are_refused_with_their_name(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["transformer.h.0.ln_1.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"h\.0\.ln_1\.weight has 1 non-finite of 32"):
        load_model(folder)


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"weight": Trap()}, folder / "weights.pt")
    with pytest.raises(CheckpointError, match="hold more than tensors"):
        load_model(folder / "weights.pt")
    assert not (tmp_path / "executed").exists()


def test_a_config_that_needs_remote_code_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mystery",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('executed')\n")
    with pytest.raises(CheckpointError, match="code from the checkpoint"):
        load_model(folder)


def test_an_unknown_bundled_name_suggests_the_nearest():
    with pytest.raises(CheckpointError, match="Did you mean 'toy/s5'"):
        load_model("toy/s55")


def test_asking_for_a_hooked_transformer_that_cannot_be_is_refused(hf_folders):
    with pytest.raises(CheckpointError, match="no HookedTransformer"):
        load_model(hf_folders["llama"], wrapper="HookedTransformer")


def test_hooked_model_is_frozen(wrapped: HookedModel):
    with pytest.raises(AttributeError):
        wrapped.model = None


def test_logits_with_a_cache_are_those_without(wrapped, tokens):
    """Two columns at a time, behind a left-padded row: what the cache holds stands for running it
    again."""
    ids = tokens.clone()
    mask = torch.ones_like(ids, dtype=torch.bool)
    ids[0, :3], mask[0, :3] = 0, False
    with torch.no_grad():
        whole, cache, parts = wrapped.logits(ids, mask), None, []
        for end in (4, 6, 7):
            begin = sum(part.shape[1] for part in parts)
            logits, cache = wrapped.logits_and_cache(ids[:, begin:end], mask[:, :end], cache)
            parts.append(logits)
    # float32 attention, summed in another order
    assert (torch.cat(parts, 1) - whole)[mask].abs().max() < 1e-4
    assert (whole[0, 3] - whole[0, 4]).abs().max() > 0.1


def test_logits_with_a_cache_take_all_tokens_as_real_without_a_mask(wrapped, tokens):
    with torch.no_grad():
        first = wrapped.logits_and_cache(tokens[:, :5])
        second = wrapped.logits_and_cache(tokens[:, 5:], cache=first.cache)
        whole = wrapped.logits(tokens)
    assert (torch.cat([first.logits, second.logits], 1) - whole).abs().max() < 1e-4


def test_a_group_network_keeps_no_cache():
    with pytest.raises(NotApplicable, match="keeps no KV cache"):
        load_model("toy/s5").logits_and_cache(torch.zeros(1, 2, dtype=torch.long))


def test_a_network_that_no_package_provides_is_refused_with_the_nearest(tmp_path):
    record = {"architecture": "GroupMPL", "config": {}, "task": {}, "training": {}}
    write_checkpoint(tmp_path, state={"w": torch.zeros(1)}, **record)
    with pytest.raises(CheckpointError, match=r"is a GroupMPL, which no.*Did you mean 'GroupMLP'"):
        load_model(tmp_path)
