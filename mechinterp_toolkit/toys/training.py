"""Train a toy from its recipe and write it as a toolkit checkpoint folder.

The same recipe, seed and machine give the same weights, byte for byte. Nothing global is touched:
the random state of torch is the caller's again afterwards.
"""

from __future__ import annotations

from pathlib import Path

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.toys.loop import Progress
from mechinterp_toolkit.toys.recipes import (
    AdditionRecipe,
    OrdinalRecipe,
    SentimentRecipe,
    get_recipe,
)


def train(
    name: str,
    folder: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the toy called `name` and write its checkpoint folder.

    Args:
        name: a key of `RECIPES`.
        folder: made if needed; must be empty.
        seed: decides initial weights, split and batches.
        steps: optimiser steps; None takes the recipe's own number.
        progress: called with step, number of steps and metrics.

    Returns:
        The folder: `checkpoint.json` (recipe, seed, metrics), `model.safetensors`, and `history/`
        with the weights at the steps the recipe keeps. A toy that reads text is a Hugging Face
        folder with its tokenizer besides.

    Raises:
        ToolkitError: no such recipe, fewer than one step, or the folder holds something already.
    """
    recipe, folder = get_recipe(name), Path(folder)
    if steps is not None and steps < 1:
        raise ToolkitError(f"a toy is trained for at least 1 step, not {steps}.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ToolkitError(
            f"{folder} is not an empty folder; give a new one, so that no older checkpoint is"
            " mixed in."
        )
    if isinstance(recipe, OrdinalRecipe):
        from mechinterp_toolkit.toys.ordinal import train_ordinal

        return train_ordinal(recipe, folder, seed=seed, steps=steps, progress=progress)
    if isinstance(recipe, AdditionRecipe):
        from mechinterp_toolkit.toys.addition import train_addition

        return train_addition(recipe, folder, seed=seed, steps=steps, progress=progress)
    if isinstance(recipe, SentimentRecipe):
        from mechinterp_toolkit.toys.sentiment import train_sentiment

        return train_sentiment(recipe, folder, seed=seed, steps=steps, progress=progress)
    from mechinterp_toolkit.toys.group_task import train_group

    return train_group(recipe, folder, seed=seed, steps=steps, progress=progress)
