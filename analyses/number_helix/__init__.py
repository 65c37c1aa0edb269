"""Are numbers kept as a helix? `finding` asks; the other modules are its parts."""

from mechinterp_toolkit.analyses.number_helix.finding import number_helix
from mechinterp_toolkit.analyses.number_helix.result import NumberHelix
