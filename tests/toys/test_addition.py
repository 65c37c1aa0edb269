"""The addition toys: prompts by hand, training, and the bundled checkpoints judged by their
weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit.checkpoint import bundled_folder, read_record
from mechinterp_toolkit.errors import TokenisationError, ToolkitError
from mechinterp_toolkit.geometry.helix import period_scan
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.toys import RECIPES, get_recipe, train
from mechinterp_toolkit.toys.addition import (
    A_POSITION,
    B_POSITION,
    LAST_POSITION,
    addition_metrics,
    addition_prompts,
    addition_tokenizer,
    answer_logits,
    asks_addition,
    build_addition_model,
    number_renaming,
    number_tokens,
    relabelled_addition,
    totals,
    train_addition,
    vocabulary,
)
from mechinterp_toolkit.toys.ordinal import build_tokenizer
from mechinterp_toolkit.toys.pairs import all_pairs, split_pairs
from mechinterp_toolkit.toys.recipes import AdditionRecipe

NAMES = ("addition", "addition-mod")


def recipe_of(name: str) -> AdditionRecipe:
    recipe = get_recipe(name)
    assert isinstance(recipe, AdditionRecipe)
    return recipe


TINY = replace(recipe_of("addition"), operands=6, d_model=16, n_heads=2, d_mlp=8)


def hf_model(name: str) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(bundled_folder(name), attn_implementation="eager").eval()


@torch.no_grad()
def number_logits(model: HookedModel, pairs: torch.Tensor) -> torch.Tensor:
    """Logits of the numbers at the equals sign."""
    tokens = torch.zeros(len(pairs), 5, dtype=torch.long) + torch.tensor([1, 0, 3, 0, 4])
    tokens[:, [A_POSITION, B_POSITION]] = pairs + 5
    return model.logits(tokens)[:, LAST_POSITION, number_tokens()]


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_the_vocabulary_is_five_signs_and_every_sum() -> None:
    assert vocabulary()[:7] == ("<pad>", "<bos>", "<unk>", "+", "=", "0", "1")
    assert vocabulary()[-1] == "98"
    assert len(set(vocabulary())) == len(vocabulary()) == 5 + 99


def test_the_tokenizer_gives_every_number_one_token_with_and_without_a_space() -> None:
    tokenizer = addition_tokenizer()
    for n, token in enumerate(number_tokens().tolist()):
        assert tokenizer.encode(f"{n}") == tokenizer.encode(f" {n}") == [token]
    assert tokenizer.encode("17 + 25 =") == tokenizer.encode("17+25=") == [22, 3, 30, 4]
    assert tokenizer.encode("99") == [tokenizer.unk_token_id]


def test_prompts_by_hand() -> None:
    pairs = torch.tensor([[3, 7], [40, 49], [5, 5]])
    asked = addition_prompts(addition_tokenizer(), pairs)
    assert asked.prompts.texts == ("3 + 7 =", "40 + 49 =", "5 + 5 =")
    assert asked.prompts.tokens.tolist() == [[1, 8, 3, 12, 4], [1, 45, 3, 54, 4], [1, 10, 3, 10, 4]]
    assert asked.prompts.answer.tolist() == [15, 94, 15]
    assert asked.prompts.position.tolist() == [LAST_POSITION] * 3
    assert asked.prompts.item_position is not None
    assert asked.prompts.item_position.tolist() == [A_POSITION] * 3
    assert (asked.a.tolist(), asked.b.tolist(), asked.total.tolist()) == (
        [3, 40, 5],
        [7, 49, 5],
        [10, 89, 10],
    )
    assert addition_prompts(addition_tokenizer(), pairs, modulus=59).total.tolist() == [10, 30, 10]


def test_without_pairs_every_pair_is_asked_once() -> None:
    asked = addition_prompts(addition_tokenizer(), modulus=7, operands=7)
    assert len(asked.prompts) == 49
    assert set(zip(asked.a.tolist(), asked.b.tolist(), strict=True)) == {
        (a, b) for a in range(7) for b in range(7)
    }
    assert asked.total.tolist() == [
        (a + b) % 7 for a, b in zip(asked.a.tolist(), asked.b.tolist(), strict=True)
    ]


def test_another_models_tokenizer_and_a_sum_that_is_no_token_are_refused() -> None:
    assert asks_addition(addition_tokenizer())
    assert not asks_addition(build_tokenizer())
    with pytest.raises(TokenisationError, match="104-word tokenizer; this one has 124 tokens"):
        addition_prompts(build_tokenizer())
    with pytest.raises(TokenisationError, match="99"):
        addition_prompts(addition_tokenizer(), torch.tensor([[50, 49]]))


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_either_trained_on_or_held_out(name: str) -> None:
    recipe = recipe_of(name)
    seen, held_out = split_pairs(recipe.operands, recipe.train_fraction, 4)
    assert len(seen) == int(recipe.train_fraction * recipe.operands**2)
    assert sorted([*seen.tolist(), *held_out.tolist()]) == all_pairs(recipe.operands).tolist()
    assert not torch.equal(seen, split_pairs(recipe.operands, recipe.train_fraction, 5)[0])


@torch.no_grad()
def test_the_logits_of_training_are_those_of_the_hugging_face_model() -> None:
    model = build_addition_model(TINY, 0).eval()
    for parameter in model.parameters():  # biases too, or a forgotten one would not show
        parameter.add_(
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3
        )
    pairs = all_pairs(6)
    tokens = addition_prompts(addition_tokenizer(), pairs).prompts.tokens
    # Float32 logits of size up to about 10, whose sums are taken in another order.
    torch.testing.assert_close(
        answer_logits(model, pairs, 6), model(tokens).logits[:, -1], rtol=1e-4, atol=1e-4
    )


def test_a_few_steps_write_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    first, second, other = (
        digests(train_addition(TINY, tmp_path / str(n), seed=seed, steps=3))
        for n, seed in enumerate((1, 1, 2))
    )
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_training_lowers_the_loss_reports_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before, told = torch.random.get_rng_state(), []
    train_addition(TINY, tmp_path / "a", steps=150, progress=lambda *c: told.append(c))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [(step, steps) for step, steps, _ in told] == [(100, 150), (150, 150)]
    untrained = addition_metrics(build_addition_model(TINY, 0), TINY, 0)["train_loss"]
    assert told[1][2]["train_loss"] < told[0][2]["train_loss"] < untrained - 1
    assert read_record(tmp_path / "a").training["metrics"]["train_loss"] == told[1][2]["train_loss"]


def test_only_pairs_of_the_training_set_are_learned(tmp_path: Path) -> None:
    """Six numbers are too few to find out about addition: held-out pairs stay wrong, unless they
    were trained on."""
    recipe = replace(TINY, d_model=32, d_mlp=64, weight_decay=0.0)
    metrics = read_record(train_addition(recipe, tmp_path / "a", steps=300)).training["metrics"]
    assert metrics["train_accuracy"] == 1.0
    assert metrics["test_accuracy"] < 0.8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"operands": 51}, "needs the number 100"),
        ({"operands": 100, "modulus": 59}, "needs the number 99"),
        ({"train_fraction": 1.0}, "leaves no pair"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ToolkitError, match=message):
        train_addition(replace(TINY, **changed), tmp_path / "a", steps=1)


def test_the_recipes_are_trained_by_name(tmp_path: Path) -> None:
    record = read_record(train("addition-mod", tmp_path / "a", seed=3, steps=1))
    assert record.task == {"kind": "addition", "operands": 59, "modulus": 59}
    assert record.training["recipe"]["name"] == "addition-mod"
    assert (record.training["seed"], record.training["steps"]) == (3, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_metrics_are_those_of_the_bundled_weights(name: str) -> None:
    record = read_record(bundled_folder(name))
    recipe, training = recipe_of(name), record.training
    made_with = {
        key: tuple(v) if isinstance(v, list) else v for key, v in training["recipe"].items()
    }
    assert AdditionRecipe(**made_with) == recipe
    assert training["steps"] == recipe.steps
    assert record.task == {
        "kind": "addition",
        "operands": recipe.operands,
        "modulus": recipe.modulus,
    }
    split = split_pairs(recipe.operands, recipe.train_fraction, training["seed"])
    for part, pairs in split._asdict().items():
        asked = addition_prompts(addition_tokenizer(), pairs, modulus=recipe.modulus).prompts
        with torch.no_grad():
            logits = hf_model(name)(asked.tokens).logits[:, -1].double()
        right = (logits.argmax(1) == asked.answer).double().mean().item()
        assert right == pytest.approx(training["metrics"][f"{part}_accuracy"], abs=1e-12)
        loss = torch.nn.functional.cross_entropy(logits, asked.answer).item()
        assert loss == pytest.approx(training["metrics"][f"{part}_loss"], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_toy_answers_pairs_it_never_saw(name: str) -> None:
    recipe, folder = recipe_of(name), bundled_folder(name)
    seed = read_record(folder).training["seed"]
    held_out = split_pairs(recipe.operands, recipe.train_fraction, seed).test
    assert len(held_out) >= 600
    given = number_logits(load_model(f"toy/{name}"), held_out).argmax(1)
    assert (given == totals(held_out, recipe.modulus)).double().mean() > 0.98
    # The file is small, and float32.
    assert (folder / "model.safetensors").stat().st_size < 1.5e6
    assert {weight.dtype for weight in hf_model(name).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_tokenizer_is_the_toys(name: str) -> None:
    assert asks_addition(load_model(f"toy/{name}").require_tokenizer())


@pytest.mark.parametrize("name", NAMES)
def test_operands_lie_around_circles_and_renamed_ones_do_not(name: str) -> None:
    """Whether a residue can be read off as well is another question: periods need not be whole
    numbers."""
    operands = recipe_of(name).operands
    embedding = load_model(f"toy/{name}").model.W_E[number_tokens(operands)].detach()
    assert period_scan(embedding, torch.arange(operands), draws=199).p.min() < 0.01
    for seed in range(3):
        renamed = embedding[number_renaming(name, seed)[:operands]]
        assert period_scan(renamed, torch.arange(operands), draws=199).p.min() > 0.05


@pytest.mark.parametrize(("name", "period"), [("addition", 2), ("addition-mod", 5)])
def test_a_bundled_toy_has_one_whole_period_whose_residues_can_be_read_off(
    name: str, period: int
) -> None:
    operands = recipe_of(name).operands
    embedding = load_model(f"toy/{name}").model.W_E[number_tokens(operands)].detach()
    assert period_scan(embedding, torch.arange(operands), draws=199).found == (period,)


def test_five_waves_of_the_modulus_make_up_most_of_the_modular_toys_numbers() -> None:
    """What a helix of whole periods cannot show: its waves have periods 59/k."""
    embedding = load_model("toy/addition-mod").model.W_E[number_tokens(59)].detach().double()
    power = torch.fft.rfft(embedding - embedding.mean(0), dim=0).abs().square().sum(1)
    shares = (power / power.sum()).sort(descending=True).values
    assert shares[:5].sum() > 0.75  # of 29; of random embeddings five would hold about a fifth


@pytest.mark.parametrize("name", NAMES)
def test_the_renamed_toy_is_the_toy_on_renamed_numbers(name: str) -> None:
    recipe, original, twin = (
        recipe_of(name),
        load_model(f"toy/{name}"),
        relabelled_addition(f"toy/{name}", 5),
    )
    renaming, n = number_renaming(name, 5), recipe.operands
    assert sorted(renaming[:n].tolist()) == list(range(n))
    assert sorted(renaming.tolist()) == list(range(99))
    assert not torch.equal(renaming, number_renaming(name, 6))
    pairs = all_pairs(n)[::7]
    expected = number_logits(original, renaming[pairs])[:, renaming]
    torch.testing.assert_close(number_logits(twin, pairs), expected, rtol=1e-4, atol=1e-4)
    given = number_logits(twin, pairs).argmax(1)
    assert (given == totals(pairs, recipe.modulus)).double().mean() < 0.1
    assert (renaming[given] == totals(renaming[pairs], recipe.modulus)).double().mean() > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_only_numbers_are_renamed(name: str) -> None:
    original, twin, renaming = (
        load_model(f"toy/{name}").model,
        relabelled_addition(name, 1).model,
        number_renaming(name, 1),
    )
    for before, after in ((original.W_E, twin.W_E), (original.W_U.T, twin.W_U.T)):
        assert torch.equal(before[:5], after[:5])
        assert torch.equal(before[5:104][renaming], after[5:104])
        assert not torch.equal(before, after)
    for weight in ("W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_in", "b_out"):
        assert torch.equal(getattr(original, weight), getattr(twin, weight))


def test_what_does_not_add_has_no_renamed_twin() -> None:
    with pytest.raises(ToolkitError, match="'toy/ordinal' does not add"):
        relabelled_addition("toy/ordinal", 0)


@pytest.mark.slow
def test_retraining_the_modular_toy_gives_what_is_bundled(tmp_path: Path) -> None:
    bundled = read_record(bundled_folder("addition-mod")).training
    retrained = read_record(train("addition-mod", tmp_path / "a", seed=bundled["seed"])).training
    # Another machine's sums may take another path, but not to a network that answers less.
    assert retrained["recipe"] == bundled["recipe"]
    for part in ("train", "test"):
        assert retrained["metrics"][f"{part}_accuracy"] == pytest.approx(
            bundled["metrics"][f"{part}_accuracy"], abs=0.01
        )


def test_the_recipes_of_this_file_are_all_that_add() -> None:
    assert (
        tuple(name for name, recipe in RECIPES.items() if isinstance(recipe, AdditionRecipe))
        == NAMES
    )
