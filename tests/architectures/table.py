"""The architectures of the suite: small random configurations, and what of them is exempt.

Every weight is random, norm gains and biases too: fresh ones are ones and zeros, and would hide one
that is forgotten. Windows are shorter than the prompts, and tokens are words that analyses ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch

from mechinterp_toolkit.analyses.circular_features.asked import TEMPLATES
from mechinterp_toolkit.errors import HookError, NotApplicable
from mechinterp_toolkit.toys.gpt2 import word_level_tokenizer
from mechinterp_toolkit.toys.ordinal import build_tokenizer
from mechinterp_toolkit.toys.planted_concepts import concept_tokenizer

LARGEST = 60
"""Numbers from 0 to this one are words of the vocabulary."""


@dataclass(frozen=True)
class Parts:
    """Where a family of `transformers` keeps what the checks look at: paths of modules."""

    blocks: str = "model.layers"
    out: str = "self_attn.o_proj"
    """Of a block: what reads the outputs of its heads side by side."""

    value: str | None = "self_attn.v_proj"
    """Of a block: the value projection; None where queries, keys and values are one matrix."""

    mlp: str = "mlp"
    """Of a block: what its MLP adds to the stream comes out here."""

    final: str = "model.norm"
    embeds: tuple[str, ...] = ("model.embed_tokens",)
    behind: tuple[str, str] | None = None
    """Of a block: the norms behind attention and MLP."""

    before: str | None = "input_layernorm"
    """Of a block: the norm in front of attention."""

    norm: Literal["rms", "rms of 1 + w", "layer"] = "rms"


_POST = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA_POST = Parts(norm="rms of 1 + w", behind=_POST)

PARTS = {
    "Gemma": Parts(norm="rms of 1 + w"),
    "Gemma2": _GEMMA_POST,
    "Gemma3": _GEMMA_POST,
    "Olmo": Parts(norm="layer"),
    "Olmo2": Parts(behind=_POST, before=None),
    "StableLm": Parts(norm="layer"),
    "Phi": Parts(out="self_attn.dense", final="model.final_layernorm", norm="layer"),
    "Phi3": Parts(value=None),
    "GPTNeoX": Parts(
        "gpt_neox.layers",
        "attention.dense",
        None,
        final="gpt_neox.final_layer_norm",
        embeds=("gpt_neox.embed_in",),
        norm="layer",
    ),
    "GPTJ": Parts(
        "transformer.h",
        "attn.out_proj",
        "attn.v_proj",
        final="transformer.ln_f",
        embeds=("transformer.wte",),
        before="ln_1",
        norm="layer",
    ),
    "GPT2": Parts(
        "transformer.h",
        "attn.c_proj",
        None,
        final="transformer.ln_f",
        embeds=("transformer.wte", "transformer.wpe"),
        before="ln_1",
        norm="layer",
    ),
    "OPT": Parts(
        "model.decoder.layers",
        "self_attn.out_proj",
        mlp="fc2",
        final="model.decoder.final_layer_norm",
        embeds=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        before="self_attn_layer_norm",
        norm="layer",
    ),
    "Bloom": Parts(
        "transformer.h",
        "self_attention.dense",
        None,
        mlp="mlp.dense_4h_to_h",
        final="transformer.ln_f",
        embeds=("transformer.word_embeddings_layernorm",),
        norm="layer",
    ),
    "Falcon": Parts(
        "transformer.h",
        "self_attention.dense",
        None,
        final="transformer.ln_f",
        embeds=("transformer.word_embeddings",),
        norm="layer",
    ),
    "Mamba": Parts(
        "backbone.layers",
        "mixer.out_proj",
        None,
        mlp="mixer",
        final="backbone.norm_f",
        embeds=("backbone.embeddings",),
        before="norm",
    ),
}


@dataclass(frozen=True)
class Exempt:
    """Why a check does not hold; where it does hold after all, the suite fails."""

    reason: str
    """What the architecture has not, or which wrapper is wrong."""

    raises: type[Exception] = NotApplicable
    """What the check ends in: a stated refusal, or numbers that differ."""

    lens: str | None = None
    """The line of TransformerLens ("3" or "4") where this is so; None: in both."""


@dataclass(frozen=True)
class Architecture:
    """One small configuration."""

    family: str
    """Name of the config and model classes in `transformers`."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What its config is told besides the common sizes."""

    exempt: dict[str, Exempt] = field(default_factory=dict)
    """Check -> why it does not hold."""

    seed: int = 0
    """Of the weights: one with which no greedy token is chosen by a hair."""

    @property
    def parts(self) -> Parts:
        """Where the model of `transformers` keeps what."""
        return PARTS.get(self.family, Parts())


_GROUPED = {"num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8}
_WINDOWED = {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 6}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
}
_NO_HEADS = "a state space has no attention heads"
_STATE_SPACE = {
    "ablating_a_head": Exempt(_NO_HEADS, HookError),
    "an_edit_of_what_the_mlp_writes_for_one_token": Exempt("a state space has no MLP", HookError),
    "ov_path_of_every_head_on_one_token": Exempt(_NO_HEADS),
    "direct_contributions_to_a_logit": Exempt(_NO_HEADS),
    "what_heads_make_of_every_representation": Exempt(_NO_HEADS),
    "what_heads_make_of_an_mlp_called_by_itself": Exempt(_NO_HEADS),
    "norms": Exempt(_NO_HEADS + " with a norm in front"),
}
_NO_MODULE = {
    "what_heads_make_of_an_mlp_called_by_itself": Exempt(
        "its MLP is no module that takes a stream and returns what is written"
    )
}
_BEHIND = {
    "a_direction_ablated_in_the_weights": Exempt(
        "a norm stands between what the weights write and the stream"
    )
}

ARCHITECTURES = {
    "Llama": Architecture("Llama"),
    "Llama-grouped": Architecture("Llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "Mistral": Architecture("Mistral", {**_GROUPED, "sliding_window": 6}),
    "Qwen2": Architecture("Qwen2", _GROUPED),
    "Qwen3": Architecture("Qwen3", {**_GROUPED, "head_dim": 12}),
    "Gemma": Architecture("Gemma", _GEMMA),
    "Gemma2": Architecture("Gemma2", {**_WINDOWED, "final_logit_softcapping": 5.0}, exempt=_BEHIND),
    "Gemma3": Architecture("Gemma3", _WINDOWED, exempt=_BEHIND),
    "GPTNeoX": Architecture("GPTNeoX", seed=3),
    "GPTNeoX-serial": Architecture("GPTNeoX", {"use_parallel_residual": False}, seed=1),
    "GPTJ": Architecture("GPTJ", {"rotary_dim": 4}),
    "GPT2": Architecture("GPT2", seed=3),
    "OPT": Architecture("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, exempt=_NO_MODULE),
    "Bloom": Architecture("Bloom", exempt=_BEHIND | _NO_MODULE, seed=16),
    "Falcon": Architecture("Falcon", seed=2),
    "Falcon-multihead": Architecture("Falcon", {"multi_query": False, "bias": True}, seed=1),
    "Phi": Architecture("Phi"),
    "Phi3": Architecture("Phi3", {**_GROUPED, "pad_token_id": 0}),
    "Olmo": Architecture("Olmo", _GROUPED),
    "Olmo2": Architecture("Olmo2", _GROUPED, exempt=_BEHIND),
    "Olmoe": Architecture("Olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "Mixtral": Architecture("Mixtral", {**_GROUPED, "num_local_experts": 4}),
    "StableLm": Architecture("StableLm", {**_GROUPED, "use_qkv_bias": True}),
    "Granite": Architecture("Granite", {**_GROUPED, **_MULTIPLIERS}, seed=1),
    "SmolLM3": Architecture("SmolLM3", {**_GROUPED, "pad_token_id": 0}),
    "Mamba": Architecture("Mamba", exempt=_STATE_SPACE),
}
"""Named after the family; key-value heads are grouped wherever a family has them."""

HOOKED_TRANSFORMERS = ("GPTNeoX", "GPTNeoX-serial", "GPT2")
"""What TransformerLens 3 also makes a HookedTransformer of."""


@cache
def tokenizer() -> Any:
    """A word-level tokenizer whose words the built-in analyses ask for."""
    words = ["<pad>", "<unk>", "<bos>", *map(str, range(LARGEST + 1)), "+", "="]
    for other in (build_tokenizer(), concept_tokenizer()):
        words += sorted(set(other.get_vocab()) - set(words))
    asked = " ".join(text for texts in TEMPLATES.values() for text in texts)
    words += sorted(set(re.findall(r"\w+", asked)) - set(words))
    return word_level_tokenizer(words)


def build(name: str, seed: int | None = None) -> Any:
    """Return the model of `transformers` of an architecture, on eager attention."""
    import transformers as hf

    entry = ARCHITECTURES[name]
    family = entry.family
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": 32, "num_hidden_layers": 3}
    sizes |= {"tie_word_embeddings": name in ("Bloom", "Falcon", "GPT2", "SmolLM3")}
    sizes |= {"bos_token_id": 2, "eos_token_id": 2}
    if family != "Mamba":
        sizes |= {"num_attention_heads": 4}
    if family not in ("GPT2", "GPTJ", "OPT", "Bloom", "Falcon", "Mamba"):
        sizes |= {"intermediate_size": 48}
    config = getattr(hf, {"Gemma3": "Gemma3Text"}.get(family, family) + "Config")
    model = getattr(hf, family + ("LMHeadModel" if family == "GPT2" else "ForCausalLM"))
    with torch.random.fork_rng():
        torch.manual_seed(entry.seed if seed is None else seed)
        made = model._from_config(config(**sizes | entry.settings), attn_implementation="eager")
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    made.generation_config.eos_token_id = None
    return made.eval()
