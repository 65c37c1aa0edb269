"""The ordinal toys: facts and prompts by hand, determinism, and the bundled checkpoints judged by
their weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit.checkpoint import bundled_folder, read_checkpoint, read_record
from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.prompts import OrdinalWords, ordinal_classes
from mechinterp_toolkit.toys import RECIPES, train
from mechinterp_toolkit.toys.ordinal import (
    NOISE_WORDS,
    Facts,
    accuracies,
    asks_by_query,
    build_facts,
    build_model,
    build_tokenizer,
    draw_batch,
    evaluation_prompts,
    scrambled_classes,
    successor_queries,
    toy_classes,
    train_ordinal,
    vocabulary,
)

TINY = {"d_model": 16, "d_mlp": 8, "batch": 8}


def ids(text: str) -> list[int]:
    return [vocabulary().index(word) for word in text.split()]


def hf_model(name: str) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(bundled_folder(name), attn_implementation="eager").eval()


def trained_order(name: str) -> dict[str, OrdinalWords]:
    task = read_record(bundled_folder(name)).task
    return {n: OrdinalWords(tuple(words), task["cyclic"][n]) for n, words in task["order"].items()}


@torch.no_grad()
def successions(model: Any, classes: dict[str, OrdinalWords], layer: int = 1) -> list[float]:
    """Per head: how many items its OV circuit sends to the next, macro-averaged; Hugging Face
    weights alone."""
    block, d_model = model.transformer.h[layer], model.config.n_embd
    d_head = d_model // model.config.n_head
    scores = []
    for head in range(model.config.n_head):
        own = slice(head * d_head, (head + 1) * d_head)
        rates = []
        for words, cyclic in classes.values():
            tokens = torch.tensor([vocabulary().index(word) for word in words])
            prompt = torch.stack([torch.full_like(tokens, vocabulary().index("<bos>")), tokens], 1)
            shown = block.ln_1(
                model.transformer(prompt, output_hidden_states=True).hidden_states[1][:, 1]
            )
            value = shown @ block.attn.c_attn.weight[:, 2 * d_model :][:, own]
            written = value @ block.attn.c_proj.weight[own]
            written = (written - written.mean(-1, keepdim=True)) * model.transformer.ln_f.weight
            best = (written @ model.lm_head.weight[tokens].T).argmax(-1)
            n = len(words) if cyclic else len(words) - 1
            rates.append((best[:n] == (torch.arange(n) + 1) % len(words)).double().mean())
        scores.append(torch.stack(rates).mean().item())
    return scores


@torch.no_grad()
def accuracy_without(model: Any, facts: Facts, layer: int, head: int) -> dict[str, float]:
    """Accuracies with the head's output replaced by its mean over the evaluation prompts, position
    by position."""
    projection = model.transformer.h[layer].attn.c_proj
    d_head = model.config.n_embd // model.config.n_head
    own, seen = slice(head * d_head, (head + 1) * d_head), []
    handle = projection.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    accuracies(model, facts)
    handle.remove()

    def ablate(module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        edited = given[0].clone()
        edited[..., own] = seen[0].mean(0)[..., own]
        return (edited,)

    handle = projection.register_forward_pre_hook(ablate)
    without = accuracies(model, facts)
    handle.remove()
    return without


def test_the_facts_of_a_cycle_and_a_line_by_hand() -> None:
    facts = build_facts(
        {
            "days": OrdinalWords(("Monday", "Tuesday", "Sunday"), cyclic=True),
            "letters": OrdinalWords(("A", "B"), cyclic=False),
        }
    )
    told = {
        (vocabulary()[i], vocabulary()[q]): vocabulary()[a]
        for i, q, a in torch.stack(facts, 1).tolist()
    }
    assert told == {
        ("Monday", "after"): "Tuesday",
        ("Tuesday", "after"): "Sunday",
        ("Sunday", "after"): "Monday",
        ("A", "after"): "B",
        ("Monday", "same"): "Monday",
        ("Tuesday", "same"): "Tuesday",
        ("Sunday", "same"): "Sunday",
        ("A", "same"): "A",
        ("B", "same"): "B",
    }
    assert len(facts.item) == len(told)


def test_there_are_as_many_facts_as_the_documentation_says() -> None:
    # 95 items; 7 + 12 + 29 + 25 + 19 of them have a successor
    assert len(build_facts(toy_classes()).item) == 95 + 92


def test_no_word_has_two_meanings() -> None:
    assert len(set(vocabulary())) == len(vocabulary())


@pytest.mark.parametrize("n_noise", [0, 3])
def test_a_prompt_is_bos_then_noise_around_one_item_then_the_query(n_noise: int) -> None:
    facts = build_facts(toy_classes())
    rows = torch.tensor([0, 50, 186]).repeat(20)
    batch = draw_batch(facts, rows, n_noise, torch.Generator().manual_seed(0))
    assert batch.tokens.shape == (60, n_noise + 3)
    noise = set(ids(" ".join(NOISE_WORDS)))
    for tokens, place, row in zip(
        batch.tokens.tolist(), batch.item_position.tolist(), rows.tolist(), strict=True
    ):
        assert tokens[0] == vocabulary().index("<bos>")
        assert tokens[place] == facts.item[row]
        assert tokens[-1] == facts.query[row]
        assert set(tokens[1:-1]) - {tokens[place]} <= noise
    assert torch.equal(batch.answer, facts.answer[rows])
    assert set(batch.item_position.tolist()) == set(range(1, n_noise + 2))


def test_batches_depend_on_the_generator_alone() -> None:
    facts, rows = build_facts(toy_classes()), torch.arange(30)
    draws = [
        draw_batch(facts, rows, 4, torch.Generator().manual_seed(seed)).tokens for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_scrambling_keeps_every_class_and_shuffles_its_order() -> None:
    real, scrambled = toy_classes(), scrambled_classes(0)
    for name, (words, cyclic) in real.items():
        assert sorted(scrambled[name].words) == sorted(words)
        assert scrambled[name].words != words
        assert scrambled[name].cyclic == cyclic
    assert scrambled_classes(0) == scrambled
    assert scrambled_classes(1) != scrambled


def test_the_tokenizer_gives_every_word_its_own_token_with_and_without_a_space() -> None:
    tokenizer = build_tokenizer()
    for word in vocabulary()[3:]:
        assert tokenizer.encode(word) == tokenizer.encode(f" {word}") == ids(word)
    assert tokenizer.encode("Monday unheard-of")[1] == tokenizer.unk_token_id


def test_evaluation_prompts_ask_every_fact_once() -> None:
    tokenizer = build_tokenizer()
    prompts = evaluation_prompts(tokenizer, seed=0)
    rows = torch.arange(len(prompts))
    asked = torch.stack(
        [
            prompts.tokens[rows, prompts.item_position],
            prompts.tokens[rows, prompts.position],
            prompts.answer,
        ],
        1,
    )
    facts = torch.stack(build_facts(toy_classes()), 1)
    assert sorted(asked.tolist()) == sorted(facts.tolist())
    assert prompts.hash == evaluation_prompts(tokenizer, seed=0).hash
    assert prompts.hash != evaluation_prompts(tokenizer, seed=1).hash


def test_successor_queries_ask_for_what_comes_after_in_the_order_given() -> None:
    tokenizer = build_tokenizer()
    days = ordinal_classes(tokenizer, "days").classes
    prompts = successor_queries(tokenizer, days)
    answers = tokenizer.convert_ids_to_tokens(prompts.answer.tolist())
    assert answers == ["Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday"]
    assert prompts.item.tolist() == list(range(7))
    assert all(text.endswith(" after") for text in prompts.texts)


def test_another_models_tokenizer_is_refused() -> None:
    tokenizer = build_tokenizer()
    assert asks_by_query(tokenizer)
    tokenizer.add_tokens(["Mon"])
    assert not asks_by_query(tokenizer)
    with pytest.raises(
        TokenisationError,
        match=r"124-word tokenizer; this one has 125 tokens\. Use succession_prompts",
    ):
        evaluation_prompts(tokenizer)


def test_what_a_recipe_freezes_stays_zero_and_the_rest_moves(tmp_path: Path) -> None:
    recipe = replace(RECIPES["ordinal"], **TINY, history=(0,))
    folder = train_ordinal(recipe, tmp_path / "a", steps=3)
    before, after = read_checkpoint(folder, "step0").state, read_checkpoint(folder).state
    frozen = {name for name in after if any(part in name for part in recipe.frozen)}
    assert len(frozen) == 4  # weight and bias of two layers
    assert all(not after[name].any() for name in frozen)
    # Everything else gets a gradient, but for what stands in front of a frozen output layer.
    silent = {"h.0.attn.c_attn", "h.0.ln_1", "h.1.mlp.c_fc", "h.1.ln_2"}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {
        name for name in before if not any(part in name for part in (*silent, *frozen))
    } <= moved


def test_copying_heads_add_up_to_the_identity_before_and_after_training(tmp_path: Path) -> None:
    recipe = replace(RECIPES["ordinal-mlp"], **TINY, history=(0,))
    folder = train_ordinal(recipe, tmp_path / "a", steps=3, seed=5)
    # A rotation of 16 dimensions is orthogonal to a few rounding units: of half precision where
    # history is kept, else float32.
    for revision, rounding in (("step0", 2e-3), (None, 1e-5)):
        state = read_checkpoint(folder, revision).state
        value = state["transformer.h.1.attn.c_attn.weight"][:, 32:]
        product = value @ state["transformer.h.1.attn.c_proj.weight"]
        torch.testing.assert_close(product, torch.eye(16), rtol=0, atol=rounding)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    first, second, other = (
        digests(train("ordinal", tmp_path / str(n), seed=seed, steps=2))
        for n, seed in enumerate((1, 1, 2))
    )
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_building_a_model_leaves_the_callers_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_model(RECIPES["ordinal"], seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_is_reported_and_falls(tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    train_ordinal(
        replace(RECIPES["ordinal"], **TINY),
        tmp_path / "a",
        steps=40,
        progress=lambda *c: seen.append(c),
    )
    assert [(step, steps) for step, steps, _ in seen] == [(20, 40), (40, 40)]
    assert seen[1][2]["loss"] < seen[0][2]["loss"]
    assert (
        json.loads((tmp_path / "a" / "checkpoint.json").read_text())["training"]["metrics"][
            "accuracy"
        ]
        < 0.5
    )


@pytest.mark.parametrize("name", ["ordinal", "ordinal-mlp", "ordinal-scrambled"])
def test_a_bundled_toy_knows_every_fact_of_its_order(name: str) -> None:
    model = hf_model(name)
    for n_noise in (0, 5):
        assert (
            accuracies(model, build_facts(trained_order(name)), seed=7, n_noise=n_noise)["accuracy"]
            == 1.0
        )


def test_one_head_of_the_ordinal_toy_takes_every_item_to_its_successor_and_is_needed() -> None:
    model, facts = hf_model("ordinal"), build_facts(toy_classes())
    scores = successions(model, toy_classes())
    best = max(range(4), key=scores.__getitem__)
    assert scores[best] > 0.8
    assert max(score for head, score in enumerate(scores) if head != best) < 0.3
    without = accuracy_without(model, facts, 1, best)
    assert without["after_accuracy"] < 0.2
    assert without["same_accuracy"] == 1.0
    for other in {0, 1, 2, 3} - {best}:
        assert accuracy_without(model, facts, 1, other)["after_accuracy"] > 0.95


def test_no_head_of_the_mlp_toy_takes_items_to_their_successors() -> None:
    assert max(successions(hf_model("ordinal-mlp"), toy_classes())) < 0.05


def test_the_scrambled_toy_knows_its_own_order_and_not_the_real_one() -> None:
    model, own = hf_model("ordinal-scrambled"), trained_order("ordinal-scrambled")
    assert max(successions(model, own)) > 0.8
    assert max(successions(model, toy_classes())) < 0.2
    assert accuracies(model, build_facts(toy_classes()))["after_accuracy"] < 0.1


@pytest.mark.parametrize(
    ("revision", "low", "high"), [(None, 1.0, 1.0), ("step0", 0.0, 0.05), ("step100", 0.1, 0.95)]
)
def test_the_bundled_folder_is_a_hugging_face_folder_with_tokenizer_and_history(
    revision: str | None, low: float, high: float
) -> None:
    hooked = load_model("toy/ordinal", revision=revision)
    prompts = evaluation_prompts(hooked.require_tokenizer(), seed=3)
    with torch.no_grad():
        logits = hooked.logits(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
    assert low <= (logits.argmax(-1) == prompts.answer).double().mean() <= high
    assert hooked.provenance.training["training"]["recipe"]["name"] == "ordinal"


@pytest.mark.slow
def test_retraining_the_ordinal_toy_gives_what_is_bundled(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    seed = read_record(bundled_folder("ordinal")).training["seed"]
    folder = train("ordinal", tmp_path / "ordinal", seed=seed)
    assert (
        read_record(folder).training["metrics"]
        == read_record(bundled_folder("ordinal")).training["metrics"]
    )
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    scores = successions(model, toy_classes())
    # Another machine's sums may take another path and another head, but not to another kind of
    # network.
    assert max(scores) > 0.8
    assert (
        accuracy_without(model, build_facts(toy_classes()), 1, scores.index(max(scores)))[
            "accuracy"
        ]
        < 0.75
    )
