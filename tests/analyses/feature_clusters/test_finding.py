"""Feature clusters: planted circles, a dictionary trained here with sae-lens, and groups that only
look like features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mechinterp_toolkit.analyses.feature_clusters.finding import (
    _planted_circles,
    _structureless_groups,
    feature_clusters,
)
from mechinterp_toolkit.analyses.feature_clusters.planes import mean_score
from mechinterp_toolkit.errors import HookError, NotApplicable
from mechinterp_toolkit.geometry.irreducible import Irreducibility
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.sae import load_sae
from mechinterp_toolkit.toys import planted_feature_clusters

DAYS = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}
PRE_0 = "blocks.0.hook_resid_pre"


@pytest.fixture(scope="module")
def planted():
    made = _planted_circles(1.0, 0)
    return made.model, made.options["sae"]


@pytest.fixture(scope="module")
def finding(planted):
    model, sae = planted
    return feature_clusters(model, sae=sae, draws=99)


def test_both_planted_circles_are_found_with_their_tokens(finding):
    days, months = finding.clusters
    assert set(days.items) == DAYS
    assert len(months.items) == 12
    assert days.found
    assert months.found
    assert days.flatness > 0.99  # the planted points lie in a plane but for the noise of positions


def test_setting_the_plane_moves_the_answer_and_permuted_coordinates_do_so_less(finding):
    assert finding.moved.value > 0.95
    assert finding.moved.control.median() < 0.7
    assert finding.used.outcome == "found"


@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_flatness_grows_with_the_share_of_the_circle(strength):
    made = _planted_circles(strength, 1)
    found = feature_clusters(made.model, draws=99, **made.options)
    assert (found.represented.outcome == "found") == (strength > 0.5)


def test_the_plane_is_the_circle_and_not_the_flat_rest_behind_it():
    """With some noise the months' components 2 and 3 stand out most: the circle's second half
    beside almost nothing."""
    made = _planted_circles(0.9, 0)
    found = feature_clusters(made.model, **made.options)
    assert [one.plane for one in found.clusters if one.found] == [1, 1]
    assert found.moved.value > 0.9


def test_groups_that_share_a_direction_and_nothing_else_are_not_found():
    made = _structureless_groups(3)
    found = feature_clusters(made.model, draws=99, **made.options)
    assert len(found.clusters) == 2
    assert all(
        c.separability > 0.5 and c.p_dependent <= 0.05 for c in found.clusters
    )  # what S alone would believe
    assert found.represented.outcome == "not_found"
    assert "no flatter than random directions" in found.represented.reason


def test_a_group_whose_points_mostly_lie_on_one_line_is_a_mixture(planted):
    """Five of the seven days are moved onto one line: in its plane, the cloud is a line and
    something beside it."""
    model, sae = planted
    rows = sae.w_dec.clone()
    days = torch.arange(2, 9)
    mean = rows[days].mean(0)
    line = rows[2] - mean
    for i, at in zip(days[:5], (1.0, -1.0, 0.6, -0.6, 0.2), strict=True):
        rows[i] = mean + at * line
    crooked = replace(sae, w_dec=rows)  # what latents write; which one fires is left as it was
    found = next(
        c for c in feature_clusters(model, sae=crooked, draws=99).clusters if 2 in c.latents
    )
    assert found.p_flat <= 0.05
    assert found.mixture > 0.5
    assert not found.found


def test_rounding_of_the_directions_moves_no_score_and_no_group(planted, finding):
    """What other CPU kernels do: every direction a little off, in its last digit."""
    model, sae = planted
    generator = torch.Generator().manual_seed(1)
    eps = torch.finfo(torch.float32).eps
    for _ in range(2):
        off = sae.w_dec * (1 + eps * torch.randint(-1, 2, sae.w_dec.shape, generator=generator))
        other = feature_clusters(model, sae=replace(sae, w_dec=off), draws=99)
        assert [c.latents for c in other.clusters] == [c.latents for c in finding.clusters]
        for a, b in zip(other.clusters, finding.clusters, strict=True):
            assert a.score == pytest.approx(
                b.score, abs=1e-3
            )  # histograms: a point or two may change its bin


def test_groups_whose_p_values_are_both_at_the_floor_come_by_score(finding):
    first, second = finding.clusters
    assert first.p == second.p == 1 / 100
    assert (
        first.score > second.score + 0.05
    )  # .64 and .53, of the circle and the plane of one axis with the intensity


def test_the_answer_says_of_what_the_share_is_one(finding):
    days = finding.clusters[0]
    assert (
        f"are active at {days.active} tokens. Of the variance of what they write there together, a"
        " share of 1 [1, 1] lies in the plane of principal components 1 and 2" in finding.answer()
    )
    later = replace(finding, clusters=(replace(days, plane=2),)).answer()
    assert "together that component 1 leaves, a share" in later
    latest = replace(finding, clusters=(replace(days, plane=4),)).answer()
    assert "together that components 1 to 3 leave, a share of" in latest
    assert "components 4 and 5" in latest


def score(*pairs: tuple[float, float]) -> list[Irreducibility]:
    return [Irreducibility(s, s, torch.zeros(1), m, True, 100) for s, m in pairs]


def test_the_published_ranking_counts_a_zero_more_and_leaves_out_failed_planes():
    shapes = score((1.0, 0.2), (2.0, 0.5), (3.0, 0.001))
    assert mean_score(shapes, "corrected") == pytest.approx((0.8 + 1.0 + 2.997) / 3)
    assert mean_score(shapes, "published") == pytest.approx((0 + 0.8 + 1.0) / 3)


def test_what_it_cannot_read_is_refused(planted, tmp_path):
    model, sae = planted
    with pytest.raises(
        NotApplicable,
        match=r"none was given; set sae=FOLDER .* or give a mechinterp_toolkit\.sae\.Sparse",
    ):
        feature_clusters(model)
    with pytest.raises(NotApplicable, match="does not say where it reads"):
        feature_clusters(model, sae=replace(sae, hook_point=None))
    with pytest.raises(HookError, match=r"no hook point 'blocks\.9"):
        feature_clusters(model, sae=sae, hook_point="blocks.9.hook_resid_pre")
    with pytest.raises(NotApplicable, match="reads 128 features, these activations have 256"):
        feature_clusters(model, sae=sae, hook_point="blocks.0.mlp.hook_post")


def test_a_folder_is_called_by_its_name_and_its_path_stays_in_the_options(planted, tmp_path):
    model, sae = planted
    folder = tmp_path / "mine"
    folder.mkdir()
    state = {"W_enc": sae.w_enc, "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / "sae_weights.safetensors",
    )
    d_in, d_sae = sae.w_enc.shape
    metadata = {"sae_lens_version": "6.54.12", "hook_name": sae.hook_point}
    record = {"architecture": "topk", "k": 1, "d_in": d_in, "d_sae": d_sae, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(record))
    for given in (str(folder), load_sae(folder)):
        found = feature_clusters(model, sae=given, draws=19)
        assert (
            "The groups come from mine; what it does not encode cannot be found." in found.caveats
        )
        assert str(tmp_path) not in str(found)
        assert found.provenance.run.options["sae"] == str(folder)


def test_a_corpus_takes_the_place_of_random_tokens(planted, tmp_path):
    model, sae = planted
    words = [
        word for word in model.tokenizer.get_vocab() if word in DAYS or word in ("river", "stone")
    ]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n".join(" ".join(words[(i + j) % len(words)] for j in range(20)) for i in range(60))
    )
    found = feature_clusters(model, sae=sae, text=str(corpus), draws=99)
    assert set(found.clusters[0].items) == DAYS
    assert not any("at random" in note for note in found.notes)


def train_sae(folder: Path, activations_: torch.Tensor) -> Path:
    """A standard autoencoder of sae-lens, trained for 1,500 steps and saved."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps, batch = 1500, 256
    generator = torch.Generator().manual_seed(0)

    def batches() -> Any:
        while True:
            yield activations_[torch.randint(len(activations_), (batch,), generator=generator)]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        d_in = activations_.shape[1]
        config = StandardTrainingSAEConfig(
            d_in=d_in,
            d_sae=2 * d_in,
            l1_coefficient=1.0,
            l1_warm_up_steps=100,
            apply_b_dec_to_input=False,
        )
        sae = StandardTrainingSAE(config)
        sae.cfg.metadata.hook_name = PRE_0
        plan = SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            device="cpu",
            autocast=False,
            lr=1e-3,
            lr_end=1e-4,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            lr_decay_steps=steps // 3,
            n_restart_cycles=1,
            adam_beta1=0.9,
            adam_beta2=0.999,
            dead_feature_window=100,
            feature_sampling_window=200,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            logger=LoggingConfig(log_to_wandb=False),
        )
        trained = SAETrainer(cfg=plan, sae=sae, data_provider=batches()).fit()
    trained.save_inference_model(folder)
    return folder


@pytest.mark.sae
def test_the_circles_are_found_in_a_dictionary_trained_here(tmp_path):
    hf_model, tokenizer, _, _ = planted_feature_clusters(1.0, 0)
    model = load_model(hf_model, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, len(tokenizer), (2000, 17), generator=generator)
    tokens[:, 0] = tokenizer.bos_token_id
    x = activations(model, tokens, (PRE_0,))[PRE_0][:, 1:].flatten(0, 1)
    folder = train_sae(tmp_path / "sae", x)
    sae = load_sae(folder)
    # The dictionary reads what it was trained on: it leaves less than a tenth of the variance.
    left = (sae.decode(sae.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert left < 0.1
    found = feature_clusters(model, sae=str(folder), draws=99)
    assert found.represented.outcome == "found"
    assert found.used.outcome == "found"
    months = {
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
    }
    items = [set(cluster.items) for cluster in found.clusters if cluster.found]
    assert any(one >= DAYS or months <= one for one in items)
