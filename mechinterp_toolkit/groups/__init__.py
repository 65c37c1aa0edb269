"""Finite groups: tables, irreps, Fourier transforms, subgroups. Permutations in, tensors out."""

from mechinterp_toolkit.groups.construct import (
    alternating,
    cyclic,
    dihedral,
    direct_product,
    group_by_name,
    quaternion,
    symmetric,
)
from mechinterp_toolkit.groups.irreps import blocks, characters, irrep, irrep_labels, irreps
from mechinterp_toolkit.groups.recognise import structure_name
from mechinterp_toolkit.groups.recover import cayley_table_from_answers, isomorphism
from mechinterp_toolkit.groups.representation import Block, FrobeniusSchur, Irrep
from mechinterp_toolkit.groups.stabiliser import Stabiliser, autocorrelation, stabilisers
from mechinterp_toolkit.groups.subgroups import (
    closure,
    conjugates,
    cosets,
    is_subgroup,
    restricted,
    subgroup_classes,
    subgroups,
)
from mechinterp_toolkit.groups.table import Group, Members, Side
from mechinterp_toolkit.groups.transform import (
    fourier,
    fourier_matrix,
    inverse_fourier,
    isotypic_energy,
    isotypic_projector,
)
