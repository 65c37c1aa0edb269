"""Checkpoint strings and toolkit folders."""

from __future__ import annotations

import json

import pytest
import torch

from mechinterp_toolkit.checkpoint import (
    check_finite,
    parse_spec,
    read_checkpoint,
    read_state,
    write_checkpoint,
)
from mechinterp_toolkit.errors import CheckpointError
from mechinterp_toolkit.model import load_model


@pytest.fixture
def folder(tmp_path):
    weights = {"w": torch.arange(3.0)}
    return write_checkpoint(
        tmp_path / "toy",
        architecture="GroupMLP",
        config={"order": 3},
        state={"w": torch.ones(3)},
        task={"group": "C3"},
        training={"betas": [0.9, 0.98]},
        history={0: weights, 50: {"w": weights["w"] + 1}},
    )


def test_a_toolkit_folder_comes_back_as_written(folder):
    end = read_checkpoint(folder)
    assert torch.equal(end.state["w"], torch.ones(3))
    assert (end.architecture, end.config, end.task, end.steps) == (
        "GroupMLP",
        {"order": 3},
        {"group": "C3"},
        (0, 50),
    )
    assert end.training == {"betas": (0.9, 0.98)}
    assert torch.equal(read_checkpoint(folder, "step50").state["w"], torch.arange(3.0) + 1)


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(folder):
    with pytest.raises(
        CheckpointError, match=r"no revision 'step51'; it has step0, step50\. Did you mean 'step50'"
    ):
        read_checkpoint(folder, "step51")


def test_a_record_of_another_schema_is_refused(folder):
    record = json.loads((folder / "checkpoint.json").read_text()) | {"schema_version": 7}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="has schema 7"):
        read_checkpoint(folder)


def test_a_record_without_weights_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        write_checkpoint(
            tmp_path, architecture="GPT2LMHeadModel", config={}, state=None, task={}, training={}
        )


@pytest.mark.parametrize(
    ("text", "kind", "location", "revision"),
    [
        ("gpt2", "hub", "gpt2", None),
        ("gpt2-small", "hub", "gpt2", None),
        ("pythia-70m@step3000", "hub", "EleutherAI/pythia-70m", "step3000"),
        ("EleutherAI/pythia-160m@step3000", "hub", "EleutherAI/pythia-160m", "step3000"),
    ],
)
def test_hub_names_and_revisions(text, kind, location, revision):
    spec = parse_spec(text)
    assert (spec.kind, spec.location, spec.revision) == (kind, location, revision)
    assert parse_spec(text.split("@")[0], revision).revision == revision


def test_two_different_revisions_are_refused():
    with pytest.raises(CheckpointError, match="two revisions"):
        parse_spec("gpt2@a", "b")


def test_folders_are_told_apart_by_what_they_hold(folder, hf_folders):
    assert parse_spec(str(folder)).kind == "toolkit"
    assert parse_spec(f"{folder}@step50").revision == "step50"
    assert parse_spec(str(hf_folders["gpt2"])).kind == "hf_folder"


def test_a_folder_whose_name_holds_an_at_sign_is_a_folder(hf_folders, tmp_path):
    odd = tmp_path / "run@3"
    odd.symlink_to(hf_folders["gpt2"], target_is_directory=True)
    assert parse_spec(str(odd)).revision is None


def test_a_state_dict_needs_a_config_and_tensors(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"needs a Hugging Face config\.json"):
        parse_spec(str(tmp_path / "model.pt"))
    torch.save({"w": 3}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_state(tmp_path / "model.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="is no state dict"):
        parse_spec(str(tmp_path / "notes.txt"))


def test_non_finite_weights_are_counted_and_named():
    with pytest.raises(CheckpointError, match="here: w has 2 non-finite of 3"):
        check_finite(
            {"v": torch.ones(2), "w": torch.tensor([1.0, float("nan"), float("inf")])}, "here"
        )


def test_bundled_toys_load_at_the_end_and_along_their_history():
    end = load_model("toy/s5")
    assert end.provenance.processing == "none"
    assert end.provenance.training["task"]
    early = load_model("toy/s5@step0")
    assert early.provenance.revision == "step0"
    assert early.provenance.checkpoint == "toy/s5"
    assert early.provenance.fingerprint != end.provenance.fingerprint
    with pytest.raises(CheckpointError, match=r"no revision 'step1'"):
        load_model("toy/s5@step1")


def test_history_is_kept_in_half_precision_and_the_end_of_training_as_it_is(folder):
    from safetensors.torch import load_file

    kept = load_file(folder / "history" / "step_000050.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {
        torch.float16
    }
    assert read_checkpoint(folder, "step50").state["w"].dtype == torch.float32
    assert load_file(folder / "model.safetensors")["w"].dtype == torch.float32
