"""Do latents make up features of two dimensions? `finding` asks, with what lies beside it."""

from mechinterp_toolkit.analyses.feature_clusters.finding import feature_clusters
from mechinterp_toolkit.analyses.feature_clusters.result import FeatureClusters
