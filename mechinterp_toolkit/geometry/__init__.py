"""Shapes in activation space, judged on plain tensors: circles, helices, irreducible clouds, neurons on circles.

Nothing here knows a model: each function takes activations and labels and gives numbers with their null.
"""

from mechinterp_toolkit.geometry.circle import CircleFit, closure_limit, closure_of, fit_circle
from mechinterp_toolkit.geometry.irreducible import Irreducibility, irreducibility, mixture, separability

__all__ = [
    "CircleFit",
    "Irreducibility",
    "closure_limit",
    "closure_of",
    "fit_circle",
    "irreducibility",
    "mixture",
    "separability",
]
