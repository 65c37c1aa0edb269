"""Are days and months kept around a circle? `finding` asks; the other modules are its parts."""

from mechinterp_toolkit.analyses.circular_features.finding import circular_features
from mechinterp_toolkit.analyses.circular_features.result import CircularFeatures
