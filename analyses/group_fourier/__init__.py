"""In which irreps does a network that learned a group multiply? `finding` asks; the other modules
are its parts."""

from mechinterp_toolkit.analyses.group_fourier.finding import GroupFourier, group_fourier
