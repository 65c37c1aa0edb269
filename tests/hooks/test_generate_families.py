"""generate: on twelve families the greedy tokens are those of transformers alone.

Cached or not, in a padded batch or one by one, edited or not. The other side is transformers' own
`generate` on the model that TransformerLens has not wrapped; the edit is there a hook of PyTorch.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import transformers as hf

from mechinterp_toolkit.hooks.generate import generate
from mechinterp_toolkit.model import load_model

NEW = 8
LENGTHS = (9, 5, 7)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))
EDITS = {"blocks.1.hook_resid_pre": lambda activation, hook: activation + VECTOR}

GROUPED = {"num_key_value_heads": 2}
FAMILIES = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Mistral": {**GROUPED, "sliding_window": 6},
    "Mixtral": {**GROUPED, "num_local_experts": 4},
    "Gemma": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "Gemma3": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "Olmo2": GROUPED,
    "Phi": {},
    "GPTNeoX": {},
    "GPT2": {},
}
"""Family -> what its config is told besides the common sizes.

Key-value heads are grouped, and the window is shorter than the prompt, where a family has them."""


def random_model(family, seed):
    """A model of three blocks with every weight random, norms included."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = sizes | ({} if family == "GPT2" else {"intermediate_size": 48}) | FAMILIES[family]
    kind = {"Gemma3": "Gemma3Text"}.get(family, family)
    ending = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    torch.manual_seed(seed)
    config = getattr(hf, kind + "Config")(**settings, tie_word_embeddings=False)
    model = getattr(hf, family + ending)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    return model.eval()


@contextmanager
def shifted(model):
    """The model with VECTOR added to what enters its second block."""

    def add(block, args, kwargs):
        if args:
            return (args[0] + VECTOR, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] + VECTOR}

    body = model.base_model
    blocks = body.h if hasattr(body, "h") else body.layers
    handle = blocks[1].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def tokens_of_transformers(model, ids, mask):
    """What transformers generates, and the smallest lead of a likeliest token over the next."""
    told = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    made = model.generate(
        ids, attention_mask=mask.long(), output_logits=True, return_dict_in_generate=True, **told
    )
    best = torch.stack(made.logits).topk(2).values
    return made.sequences[:, ids.shape[1] :], float((best[..., 0] - best[..., 1]).min())


def clear_case(family, ids, mask):
    """The first model whose tokens depend on past and edit, with none chosen by a hair.

    float32 logits of order 1 agree to about 1e-5, so that rounding decides nothing above 1e-3.
    """
    for seed in range(20):
        model = random_model(family, seed)
        plain, lead = tokens_of_transformers(model, ids, mask)
        with shifted(model):
            edited, lead_edited = tokens_of_transformers(model, ids, mask)
        varied = all(len(set(row.tolist())) > 2 for row in [*plain, *edited])
        if min(lead, lead_edited) > 1e-3 and varied and bool((plain != edited).any(1).all()):
            return model, plain, edited
    pytest.fail(f"no random {family} makes a clear case")


@pytest.fixture(scope="module")
def prompts():
    ids = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(9) >= 9 - length for length in LENGTHS])
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers_alone(family, prompts):
    ids, mask = prompts
    model, plain, edited = clear_case(family, ids, mask)
    wrapped = load_model(model)
    for edits, expected in (({}, plain), (EDITS, edited)):
        for cached in (True, False):
            how = {"max_new_tokens": NEW, "use_cache": cached}
            assert torch.equal(generate(wrapped, ids, edits, mask=mask, **how), expected)
            for row, length in enumerate(LENGTHS):
                alone = generate(wrapped, ids[row : row + 1, 9 - length :], edits, **how)
                assert torch.equal(alone[0], expected[row])
