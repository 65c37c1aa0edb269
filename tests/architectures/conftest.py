"""One case per architecture and wrapper: the toolkit's model, loaded from a folder, beside
`transformers`' own."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mechinterp_toolkit.model import HookedModel, has_hooked_transformer, load_model

from .table import ARCHITECTURES, HOOKED_TRANSFORMERS, Architecture, build, tokenizer

LENS = importlib.metadata.version("transformer-lens").split(".")[0]


@dataclass(frozen=True)
class Case:
    """One architecture in one wrapper."""

    name: str
    architecture: Architecture
    hf: Any
    """The model of `transformers`, which TransformerLens has never touched."""

    model: HookedModel
    """The same weights, loaded by the toolkit from a folder."""


def case_names() -> list[str]:
    """The architectures, and those that TransformerLens 3 wraps in two ways once more."""
    twice = [f"{name} as HookedTransformer" for name in HOOKED_TRANSFORMERS]
    return [*ARCHITECTURES, *(twice if has_hooked_transformer() else [])]


@pytest.fixture(scope="session")
def made() -> dict[str, Case]:
    """The cases made so far, by name."""
    return {}


def make(case: str, folder: Path) -> Case:
    """Write the checkpoint of a case into `folder` and load it."""
    name, _, wrapper = case.partition(" as ")
    build(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    # Qwen 2 reads the files of any tokenizer as those of its own, which splits words.
    told = {"wrapper": wrapper or "TransformerBridge", "tokenizer": tokenizer(), "device": "cpu"}
    model = load_model(folder, **told)
    return Case(case, ARCHITECTURES[name], build(name), model)


@pytest.fixture(params=case_names())
def case(
    request: pytest.FixtureRequest,
    made: dict[str, Case],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    """A case; a check that it is exempt from must fail, as the table says."""
    name = request.param
    if name not in made:
        made[name] = make(name, tmp_path_factory.mktemp("checkpoint"))
    check = request.function.__name__.removeprefix("test_")
    exempt = made[name].architecture.exempt.get(check)
    if exempt is not None and exempt.lens in (None, LENS):
        request.applymarker(
            pytest.mark.xfail(reason=exempt.reason, raises=exempt.raises, strict=True)
        )
    return made[name]


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token ids [2, 9]."""
    return torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 sums in another order: 1e-5 of the largest entry."""
    assert ours.shape == expected.shape
    off = float((ours.double() - expected.double()).abs().max())
    assert off <= 1e-5 * float(expected.abs().max()), f"off by {off:.2g}"
