"""In which irreps does a network that learned a group multiply? `finding` asks, the rest helps."""

from mechinterp_toolkit.analyses.group_fourier.finding import group_fourier
from mechinterp_toolkit.analyses.group_fourier.result import GroupFourier
