"""Networks of which it is known whether irreps carry their products: for calibration and power."""

from __future__ import annotations

from mechinterp_toolkit.groups import symmetric
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.registry import Planted
from mechinterp_toolkit.toys.planted_groups import planted_group_mlp, relabelled_group_mlp


def planted_irreps(strength: float, seed: int) -> Planted:
    """Return a network on S4 whose neurons realise two irreps at `strength`, and their labels.

    >>> planted_irreps(1.0, seed=0).locations
    ('(3,1)', '(1,1,1,1)')
    """
    labels = ("(3,1)", "(1,1,1,1)")
    network = planted_group_mlp(symmetric(4), labels, strength=strength, seed=seed)
    return Planted(load_model(network), labels, {})


def random_network(seed: int) -> HookedModel:
    """Return a network for S5 with random weights.

    >>> random_network(seed=0).model.order
    120
    """
    return load_model("toy/s5").random_twin(seed)


def scrambled_network(seed: int) -> HookedModel:
    """Return the trained S5 network with a, b and c relabelled at random, each on its own.

    There is no group to speak of.

    >>> scrambled_network(seed=0).model.order
    120
    """
    return load_model(relabelled_group_mlp(load_model("toy/s5").model, seed=seed))
