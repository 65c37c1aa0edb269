"""The estimate of time before a report."""

from __future__ import annotations

import pytest

from mechinterp_toolkit.report.cost import TYPICAL_SECONDS, estimate_seconds
from mechinterp_toolkit.report.settings import Settings


@pytest.mark.usefixtures("only_fakes")
def test_the_estimate_of_time_counts_checkpoints_twins_and_costs() -> None:
    both = TYPICAL_SECONDS["quick"] + TYPICAL_SECONDS["slow"]
    assert estimate_seconds(3, Settings(all_costs=True)) == 6 * both
    assert estimate_seconds(3, Settings(all_costs=True, twin=False)) == 3 * both
