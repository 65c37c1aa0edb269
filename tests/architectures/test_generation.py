"""Per architecture: 12 greedy tokens are those of `transformers`' own `generate`.

Cached or not, in a left-padded batch or alone, edited or not; the edit is there a hook of PyTorch.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from mechinterp_toolkit.hooks.generate import generate

from .reference import blocks_of, changed_input

NEW, LENGTHS = 12, (9, 5)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))
EDITS = {"blocks.1.hook_resid_pre": lambda activation, hook: activation + VECTOR}


def padded(ids):
    """The prompts with the second one shortened, and their mask."""
    mask = torch.stack([torch.arange(9) >= 9 - length for length in LENGTHS])
    return ids.masked_fill(~mask, 0), mask


def tokens_of_transformers(case, ids, mask, edited):
    """What transformers generates; no token of it is chosen by a hair, nor repeated throughout.

    float32 logits of order 1 agree to about 1e-5, so that rounding decides nothing above 1e-3.
    """
    told = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "output_logits": True}
    block = blocks_of(case.hf, case.architecture.parts)[1]
    edit = changed_input(block, lambda stream: stream + VECTOR)
    with edit if edited else contextlib.nullcontext():
        made = case.hf.generate(
            ids, attention_mask=mask.long(), return_dict_in_generate=True, **told
        )
    best = torch.stack(made.logits).topk(2).values
    assert float((best[..., 0] - best[..., 1]).min()) > 1e-3, "take another seed"
    tokens = made.sequences[:, ids.shape[1] :]
    assert all(len(set(row.tolist())) > 2 for row in tokens), "take another seed"
    return tokens


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("edited", [False, True])
def test_greedy_tokens(case, ids, edited, cached):
    ids, mask = padded(ids)
    expected = tokens_of_transformers(case, ids, mask, edited)
    edits, how = EDITS if edited else {}, {"max_new_tokens": NEW, "use_cache": cached}
    assert torch.equal(generate(case.model, ids, edits, mask=mask, **how), expected)
    for row, length in enumerate(LENGTHS):
        alone = generate(case.model, ids[row : row + 1, 9 - length :], edits, **how)
        assert torch.equal(alone[0], expected[row])
