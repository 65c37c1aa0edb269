"""What logits of the items of a class choose."""

from __future__ import annotations

import torch

from mechinterp_toolkit.analyses.successor_heads.items import winners


def test_a_tie_wins_nothing():
    logits = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert winners(logits).tolist() == [1, -1, -1]
