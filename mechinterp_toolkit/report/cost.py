"""How long will a report take? An estimate before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from mechinterp_toolkit.report.settings import DEFAULTS, Settings

TYPICAL_SECONDS: Mapping[str, float] = {"quick": 1.0, "slow": 300.0}
"""Seconds an analysis of each cost takes on a bundled toy. "quick" was measured: all bundled toys,
analyses that do not apply included, came to 0.7 s each on two CPU cores. "slow" is an upper bound,
since no built-in analysis is."""


def estimate_seconds(n_checkpoints: int, settings: Settings = DEFAULTS) -> float:
    """Return the rough time of a report over bundled toys in seconds.

    Larger models take longer in proportion.
    """
    once = sum(TYPICAL_SECONDS[analysis.cost] for analysis in settings.chosen())
    return n_checkpoints * (1 + settings.twin) * once
