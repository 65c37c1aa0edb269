"""Shapes in activation space, judged on plain tensors: circles, helices, irreducible clouds.

Nothing here knows a model: each function takes activations and labels and gives numbers with their
null.
"""

from mechinterp_toolkit.geometry.circle import CircleFit, fit_circle, harmonics, transfer
from mechinterp_toolkit.geometry.closure import closure_limit, closure_of
from mechinterp_toolkit.geometry.helix import (
    HelixFit,
    PeriodScan,
    fit_helix,
    helix_basis,
    period_scan,
)
from mechinterp_toolkit.geometry.irreducible import (
    Irreducibility,
    irreducibility,
    mixture,
    separability,
)
from mechinterp_toolkit.geometry.neurons import NeuronFits, fit_neurons
