"""Are numbers kept as a helix? `finding` asks; the other modules are its parts."""

from mechinterp_toolkit.analyses.number_helix.finding import NumberHelix, number_helix
