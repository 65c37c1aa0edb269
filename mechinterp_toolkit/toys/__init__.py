"""Toy tasks and models: recipes, training, models planted by construction, and bundled
checkpoints."""

from __future__ import annotations

import importlib
from typing import Any

# Resolved on first use: `mechinterp --help` names the recipes and must not pay for torch.
_HOME = {
    "RECIPES": "recipes",
    "addition_prompts": "addition",
    "addition_tokenizer": "addition",
    "asks_addition": "addition",
    "asks_by_query": "ordinal",
    "concept_model": "planted_concepts",
    "evaluation_prompts": "ordinal",
    "get_recipe": "recipes",
    "number_renaming": "addition",
    "planted_adder": "planted_numbers",
    "planted_calendar": "planted_numbers",
    "planted_category_booster": "planted_ordinal",
    "planted_circle": "planted_ordinal",
    "planted_concept": "planted_concepts",
    "planted_copy": "planted_ordinal",
    "planted_feature_clusters": "planted_features",
    "planted_group_mlp": "planted_groups",
    "planted_self_suppression": "planted_ordinal",
    "planted_successor": "planted_ordinal",
    "random_dictionary": "planted_features",
    "relabelled_adder": "planted_numbers",
    "relabelled_addition": "addition",
    "relabelled_group_mlp": "planted_groups",
    "relabelled_ordinal": "planted_ordinal",
    "successor_queries": "ordinal",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
