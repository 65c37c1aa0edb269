from mechinterp_toolkit.groups.construct import (
    alternating,
    cyclic,
    dihedral,
    direct_product,
    group_by_name,
    quaternion,
    symmetric,
)
from mechinterp_toolkit.groups.energies import activation_energy
from mechinterp_toolkit.groups.explanations import explain
from mechinterp_toolkit.groups.interventions import intervention_table
from mechinterp_toolkit.groups.irreps import Block, FrobeniusSchur, Irrep
from mechinterp_toolkit.groups.network import GroupNetwork, group_network, recover_group
from mechinterp_toolkit.groups.neurons import NeuronTable, neuron_table
from mechinterp_toolkit.groups.progress import group_progress
from mechinterp_toolkit.groups.recognise import structure_name
from mechinterp_toolkit.groups.recover import cayley_table_from_answers, isomorphism
from mechinterp_toolkit.groups.stabiliser import (
    Stabiliser,
    approximate_stabiliser,
    autocorrelation,
    explained_by_cosets,
)
from mechinterp_toolkit.groups.subgroups import (
    closure,
    conjugates,
    cosets,
    is_subgroup,
    restricted,
    subgroup_classes,
    subgroups,
)
from mechinterp_toolkit.groups.table import Group, Side

__all__ = [
    "Block",
    "FrobeniusSchur",
    "Group",
    "GroupNetwork",
    "Irrep",
    "NeuronTable",
    "Side",
    "Stabiliser",
    "activation_energy",
    "alternating",
    "approximate_stabiliser",
    "autocorrelation",
    "cayley_table_from_answers",
    "closure",
    "conjugates",
    "cosets",
    "cyclic",
    "dihedral",
    "direct_product",
    "explain",
    "explained_by_cosets",
    "group_by_name",
    "group_network",
    "group_progress",
    "intervention_table",
    "is_subgroup",
    "isomorphism",
    "neuron_table",
    "quaternion",
    "recover_group",
    "restricted",
    "structure_name",
    "subgroup_classes",
    "subgroups",
    "symmetric",
]
