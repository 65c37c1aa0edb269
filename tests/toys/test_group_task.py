"""Training a group toy: loss, determinism, and the bundled checkpoints judged by their weights."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechinterp_toolkit.checkpoint import bundled_folder, bundled_names, read_checkpoint
from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.groups import cyclic, symmetric
from mechinterp_toolkit.toys import RECIPES, train
from mechinterp_toolkit.toys.group_mlp import GroupMLP
from mechinterp_toolkit.toys.group_task import evaluate, products, train_group
from mechinterp_toolkit.toys.pairs import all_pairs, split_pairs


def bundled(name: str, revision: str | None = None) -> GroupMLP:
    stored = read_checkpoint(bundled_folder(name), revision)
    network = GroupMLP.from_config(stored.config)
    network.load_state_dict(dict(stored.state))
    return network


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_products_follow_the_order_of_the_pair() -> None:
    table = symmetric(3).table
    a, b = 1, 3
    assert table[a, b] != table[b, a]  # the pair was chosen so that a swap would be seen
    assert products(table, torch.tensor([[a, b], [b, a]])).tolist() == [
        int(table[a, b]),
        int(table[b, a]),
    ]


def test_evaluate_agrees_with_a_network_worked_out_by_hand() -> None:
    # One neuron per pair of Z_2 would be needed; all-zero weights give equal logits: loss ln 2,
    # first class guessed.
    zero = torch.zeros(2, 1)
    network = GroupMLP.from_weights(zero, zero, zero, zero.T)
    score = evaluate(network, cyclic(2).table, all_pairs(2))
    assert score.loss == pytest.approx(math.log(2), abs=1e-12)  # float64 throughout
    assert score.accuracy == 0.5


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_training_and_the_hooked_forward_pass_mean_the_same_loss(activation: str) -> None:
    network = GroupMLP(6, d_embed=8, d_hidden=5, activation=activation, bias=True, seed=2)
    pairs, table = all_pairs(6), symmetric(3).table
    loss = torch.nn.functional.cross_entropy(network(pairs).double(), table.flatten()).item()
    # Logits near 1 in float32, summed in another order.
    assert evaluate(network, table, pairs).loss == pytest.approx(loss, abs=1e-6)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    folders = [
        train("s5", tmp_path / n, seed=seed, steps=3) for n, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, other = map(digests, folders)
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_training_lowers_the_loss_and_keeps_its_history(tmp_path: Path) -> None:
    recipe = replace(
        RECIPES["z113"], group="Z7", d_embed=16, d_hidden=16, history=(0, 5, 20), train_fraction=0.8
    )
    seen: list[tuple[int, int, dict[str, float]]] = []
    folder = train_group(
        recipe, tmp_path / "z7", seed=0, steps=20, progress=lambda *call: seen.append(call)
    )
    stored = read_checkpoint(folder)
    assert stored.steps == (0, 5)  # the last step is the checkpoint itself
    assert [(step, steps) for step, steps, _ in seen] == [(20, 20)]
    told = {name: value for name, value in seen[-1][2].items() if name != "loss"}
    assert stored.training["metrics"] == told
    losses = []
    for revision in ("step0", "step5", None):
        network = GroupMLP.from_config(stored.config)
        network.load_state_dict(dict(read_checkpoint(folder, revision).state))
        losses.append(evaluate(network, cyclic(7).table, split_pairs(7, 0.8, seed=0).train).loss)
    assert losses == sorted(losses, reverse=True)
    # The record was taken of the float32 weights that were written.
    assert losses[-1] == pytest.approx(stored.training["metrics"]["train_loss"], abs=1e-12)


def test_the_record_says_recipe_seed_and_steps(tmp_path: Path) -> None:
    training = read_checkpoint(train("s5", tmp_path / "s5", seed=4, steps=1)).training
    assert (training["recipe"]["name"], training["seed"], training["steps"]) == ("s5", 4, 1)
    assert training["recipe"]["l2"] == 2e-4


@pytest.mark.parametrize("name", ["s5", "z113"])
def test_a_bundled_network_knows_the_whole_table(name: str) -> None:
    network = bundled(name)
    score = evaluate(network, network.group.table, all_pairs(network.order))
    assert score.accuracy == 1.0
    assert score.loss < 0.05


@pytest.mark.parametrize("name", ["s5", "z113"])
def test_the_record_of_a_bundled_network_is_that_of_its_weights(name: str) -> None:
    network, training = bundled(name), read_checkpoint(bundled_folder(name)).training
    split = split_pairs(network.order, training["recipe"]["train_fraction"], training["seed"])
    for part, pairs in split._asdict().items():
        score = evaluate(network, network.group.table, pairs)
        assert score.accuracy == training["metrics"][f"{part}_accuracy"]
        # Float32 logits of size 10 are summed in an order that depends on the machine.
        assert score.loss == pytest.approx(training["metrics"][f"{part}_loss"], rel=1e-3)


@pytest.mark.parametrize(("name", "before"), [("s5", "step200"), ("z113", "step0")])
def test_a_bundled_history_starts_before_the_network_generalises(name: str, before: str) -> None:
    network = bundled(name, before)
    training = read_checkpoint(bundled_folder(name)).training
    split = split_pairs(network.order, 0.4, training["seed"])
    assert evaluate(network, network.group.table, split.test).accuracy < 0.05
    assert (evaluate(network, network.group.table, split.train).accuracy == 1.0) == (name == "s5")


def test_bundled_names_are_the_ones_load_model_takes() -> None:
    assert {"toy/s5", "toy/z113"} <= set(bundled_names())
    assert bundled_folder("toy/s5") == bundled_folder("s5")


def test_an_unknown_toy_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"no toy is called 'z133'\. Did you mean 'z113'"):
        train("z133", tmp_path / "out")
    with pytest.raises(ToolkitError, match="'s6' is not bundled"):
        bundled_folder("s6")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("kept")
    with pytest.raises(ToolkitError, match="is not an empty folder"):
        train("s5", tmp_path, steps=1)


def test_no_steps_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="at least 1 step, not 0"):
        train("s5", tmp_path / "out", steps=0)


@pytest.mark.slow
def test_retraining_s5_gives_what_is_bundled(tmp_path: Path) -> None:
    stored = read_checkpoint(bundled_folder("s5")).training
    fresh = read_checkpoint(train("s5", tmp_path / "s5", seed=stored["seed"])).training
    for name, value in stored["metrics"].items():
        # Another machine's float32 sums take another path to the same L2-limited loss; accuracy is
        # exactly 1.
        assert fresh["metrics"][name] == pytest.approx(value, rel=0.05), name
