"""Which models `successor_heads` can judge, and models that have such a head or have none."""

from __future__ import annotations

from mechinterp_toolkit.heads.weights import embedding, why_no_heads
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import has_ordinal_tokens
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.toys import planted_successor, relabelled_ordinal


def needs_ordinal_tokens(model: HookedModel) -> str | None:
    """Return why ordinals cannot be put to the heads of this model, or None."""
    reason = why_no_heads(model)
    return reason or has_ordinal_tokens(model.tokenizer, d_vocab=len(embedding(model)))


def planted_head(strength: float, seed: int) -> Planted:
    """Return a random model with one head edited to map every item to the next at `strength`."""
    hf_model, tokenizer, (layer, head) = planted_successor(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), (f"{layer}.{head}",), {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return the trained ordinal toy, tokens of each class permuted: it learned another order."""
    return relabelled_ordinal("toy/ordinal", seed)
