"""Sparse autoencoders read without sae-lens agree with sae-lens, and what is not known is
refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mechinterp_toolkit.errors import CheckpointError, NotApplicable
from mechinterp_toolkit.sae import load_sae

D_IN, D_SAE = 6, 10


def written(folder: Path, record: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """An autoencoder on disk, with `record` added to its record; a tensor given as None is left
    out."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    state = {k: torch.randn(s, generator=generator) for k, s in shapes.items()} | tensors
    save_file({k: v for k, v in state.items() if v is not None}, folder / "sae_weights.safetensors")
    metadata = {"hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.54.12"}
    base = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE}
    metadata |= (record or {}).get("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(base | (record or {}) | {"metadata": metadata}))
    return folder


def rows() -> torch.Tensor:
    return 2 * torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.sae
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_codes_and_reconstruction_are_those_of_sae_lens(tmp_path, architecture, subtract, rescale):
    from sae_lens import SAE

    extra = {"topk": {"k": 3, "rescale_acts_by_decoder_norm": rescale}}.get(architecture, {})
    threshold = torch.rand(D_SAE) if architecture == "jumprelu" else None
    record = {
        "architecture": architecture,
        "apply_b_dec_to_input": subtract,
        "dtype": "float32",
        "device": "cpu",
    }
    folder = written(tmp_path, record | extra, threshold=threshold)
    theirs = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes, back = theirs.encode(rows()), theirs(rows())
    if architecture == "topk" and rescale:
        codes = codes / theirs.W_dec.norm(dim=1)  # theirs are divided by this when they are decoded
    for ours in (load_sae(folder), load_sae(theirs)):
        # The same float32 sums in another order.
        assert torch.allclose(ours.encode(rows()), codes, atol=1e-5)
        assert torch.allclose(ours.decode(ours.encode(rows())), back, atol=1e-5)
        assert ours.hook_point == "blocks.0.hook_resid_pre"


def test_a_standard_encoder_worked_by_hand(tmp_path):
    eye = torch.eye(D_IN, D_SAE)
    sae = load_sae(
        written(tmp_path, W_enc=eye, b_enc=torch.full((D_SAE,), -1.0), b_dec=torch.ones(D_IN))
    )
    assert sae.encode(torch.tensor([0.0, 1, 2, 3, 4, 5])).tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]


def test_an_autoencoder_of_a_centred_model_reads_centred_activations(tmp_path):
    centred = {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}
    plain = load_sae(written(tmp_path))
    sae = load_sae(written(tmp_path, centred))
    x = rows()
    assert not torch.allclose(sae.encode(x), plain.encode(x))
    assert torch.equal(sae.encode(x), plain.encode(x - x.mean(-1, keepdim=True)))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"architecture": "gated"}, "'gated' autoencoder; known here"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations='hook_z'"),
        (
            {"metadata": {"sae_lens_version": None}},
            "no metadata.sae_lens_version.*before sae-lens 6 they meant other things",
        ),
        (
            {"metadata": {"sae_lens_version": "7.0.0"}},
            "written by sae-lens 7.0.0, and what its keys mean is known for sae-lens 6",
        ),
        ({"metadata": {"model_from_pretrained_kwargs": {"fold_ln": True}}}, "loaded with fold_ln"),
    ],
)
def test_settings_that_are_not_known_are_refused_by_name(tmp_path, record, words):
    with pytest.raises(NotApplicable, match=words):
        load_sae(written(tmp_path, record))


def test_a_folder_written_by_hand_is_told_what_it_needs_and_of_the_class_that_needs_no_folder(
    tmp_path,
):
    with pytest.raises(
        NotApplicable,
        match=r"SparseAutoencoder of its tensors; a folder needs .*W_enc.*cfg.json with arch",
    ):
        load_sae(written(tmp_path, {"metadata": {"sae_lens_version": None}}))
    record = json.loads((written(tmp_path) / "cfg.json").read_text())
    for key in ("architecture", "d_in", "d_sae"):
        (tmp_path / "cfg.json").write_text(
            json.dumps({k: v for k, v in record.items() if k != key})
        )
        with pytest.raises(CheckpointError, match=f"has no {key}; a folder needs"):
            load_sae(tmp_path)
    with pytest.raises(CheckpointError, match="has no k; a folder needs"):
        load_sae(written(tmp_path, {"architecture": "topk"}))


def test_the_title_of_a_folder_is_its_name_without_the_path(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    sae = load_sae(written(tmp_path / "mine"))
    assert sae.name == str(tmp_path / "mine")
    assert sae.title == "mine"
    monkeypatch.chdir(tmp_path)
    assert load_sae("mine").title == "mine"
    assert replace(sae, name="gpt2-small-res-jb/blocks.7").title == "gpt2-small-res-jb/blocks.7"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"b_dec": None}, "has no b_dec"),
        (
            {"W_enc": torch.zeros(D_SAE, D_IN)},
            r"W_enc of .* is \(10, 6\); its record says \(6, 10\)",
        ),
        ({"W_dec": torch.full((D_SAE, D_IN), torch.nan)}, "W_dec of .* NaN"),
    ],
)
def test_broken_weights_are_refused_by_name(tmp_path, tensors, words):
    with pytest.raises(CheckpointError, match=words):
        load_sae(written(tmp_path, **tensors))


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no cfg\.json and no sae_weights"):
        load_sae(tmp_path)
    with pytest.raises(CheckpointError, match="no folder here and no RELEASE/SAE_ID"):
        load_sae("missing")
    with pytest.raises(
        CheckpointError,
        match=r"got a int; expected a mechinterp_toolkit\.sae\.SparseAutoencoder, a folder",
    ):
        load_sae(3)


def test_activations_of_another_width_are_refused(tmp_path):
    with pytest.raises(NotApplicable, match="reads 6 features, these activations have 7"):
        load_sae(written(tmp_path)).encode(torch.zeros(2, 7))
