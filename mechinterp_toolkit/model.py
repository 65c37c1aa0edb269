"""`load_model(spec) -> HookedModel`: the only place that knows TransformerLens.

Any way of naming a checkpoint ends in a TransformerLens hooked model with its tokenizer and its
provenance. Weights are left raw by default, so that raw logits are those of Hugging Face;
`processing="compatible"` folds and centres them.

What would fool it: a folder without a tokenizer, weights missing from a file and silently drawn at
random, a revision that a local folder cannot have. Each is refused by name.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechinterp_toolkit.checkpoint import (
    CheckpointSpec,
    check_finite,
    fingerprint,
    has_tokenizer_files,
    parse_spec,
    read_checkpoint,
    read_record,
    read_state,
)
from mechinterp_toolkit.errors import CheckpointError, NotApplicable, TokenisationError, nearest
from mechinterp_toolkit.guards import (
    cache_argument,
    cached_columns,
    check_cache,
    check_logits,
    hand_on_cache,
    heeds_mask,
    installed,
    probe_tokens,
)
from mechinterp_toolkit.results import Provenance

P = ParamSpec("P")
R = TypeVar("R")

Wrapper = Literal["auto", "HookedTransformer", "TransformerBridge"]
Processing = Literal["none", "compatible"]

_PACKAGES = ("mechinterp-toolkit", "transformer-lens", "torch", "transformers")
NETWORKS = "mechinterp_toolkit.networks"
"""Entry-point group of networks with hook points of their own, by the architecture that a toolkit
checkpoint records: a `HookedRootModule` with `from_config(config)` and `random_like(seed)`."""

_PROCESS_NOTHING = dict.fromkeys(
    ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
)


@dataclass(frozen=True)
class HookedModel:
    """A TransformerLens model, its tokenizer and its provenance: what every analysis receives."""

    model: Any
    """`HookedTransformer`, `TransformerBridge` or another `HookedRootModule`, in eval mode."""

    tokenizer: Any | None
    """Hugging Face tokenizer, or None where there is no text."""

    provenance: Provenance
    """Where the weights came from and in which form they are."""

    make_twin: Callable[[int], HookedModel] | None = field(default=None, repr=False, compare=False)
    """`make_twin(seed)`: the same architecture with random weights; None where it cannot be built.
    """

    heeds_mask: bool = True
    """Whether a row behind padding gets the logits that it has alone: looked at while loading, and
    taken for granted of a TransformerLens model that was handed over. Where not, padding in front
    is refused."""

    @property
    def is_transformer(self) -> bool:
        """Whether the model has transformer blocks."""
        return hasattr(self.model, "blocks")

    @property
    def is_bridge(self) -> bool:
        """Whether the model is a `TransformerBridge`."""
        return "TransformerBridge" in (c.__name__ for c in type(self.model).__mro__)

    @property
    def cfg(self) -> Any:
        """The TransformerLens config of a transformer."""
        return self.model.cfg

    @property
    def device(self) -> torch.device:
        """Device of the first weight."""
        return next(self.model.parameters()).device

    @functools.cached_property
    def hook_points(self) -> dict[str, Any]:
        """Every hook name, aliases included -> its `HookPoint`."""
        return dict(self.model.hook_dict)

    def require_tokenizer(self) -> Any:
        """Return the tokenizer, or raise `TokenisationError` where there is none."""
        if self.tokenizer is None:
            raise TokenisationError(
                f"{self.provenance.checkpoint} comes without a tokenizer, and text is needed here;"
                " save the tokenizer into the checkpoint's folder (tokenizer.save_pretrained) or"
                " pass tokenizer= to load_model."
            )
        return self.tokenizer

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch *pos d_vocab"]:
        """Return the logits of right-padded `tokens`; a left-padded batch needs its `mask` (True: a
        real token).

        A group network takes pairs [batch 2] and returns logits [batch order].
        """
        if not self.is_transformer:
            answers: Tensor = self.model(tokens.to(self.device))
            return answers
        self._check_mask(mask)
        extra = {} if mask is None else {"attention_mask": mask.to(self.device).long()}
        logits: Tensor = self.model(tokens.to(self.device), return_type="logits", **extra)
        return logits

    def logits_and_cache(
        self,
        tokens: Int[Tensor, "batch new"],
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: Any = None,
    ) -> LogitsAndCache:
        """Run `tokens` behind what `cache` holds (None: nothing); the cache is the wrapper's own,
        and grows in place.

        Args:
            tokens: the new columns alone.
            mask: True at the real tokens of all columns, cached ones included; None where all are.

        Raises:
            NotApplicable: the model is no transformer.
            CacheError: the cache does not hold all columns afterwards: the next ones would not see
                them.
        """
        if not self.is_transformer:
            raise NotApplicable(
                f"{self.provenance.checkpoint} is a {self.provenance.wrapper}, which keeps no KV"
                " cache."
            )
        self._check_mask(mask)
        tokens, columns = tokens.to(self.device), cached_columns(cache) + tokens.shape[1]
        mask = None if mask is None else mask.to(self.device).long()
        run = self._through_bridge if self.is_bridge else self._through_own_cache
        answer = run(tokens, mask, cache)
        check_cache(answer.cache, columns)
        return answer

    def _check_mask(self, mask: Tensor | None) -> None:
        if self.heeds_mask or mask is None or not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            return
        raise NotApplicable(
            f"{self.provenance.checkpoint} reads its padding, under {installed()}: a row behind"
            " padding gets other logits than alone. Run prompts of one length at a time."
        )

    def _through_bridge(self, tokens: Tensor, mask: Tensor | None, cache: Any) -> LogitsAndCache:
        told: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        told |= {"use_cache": True, cache_argument(self.model.original_model): cache}
        return LogitsAndCache(*self.model(tokens, return_type="logits_and_cache", **told))

    def _through_own_cache(self, tokens: Tensor, mask: Tensor | None, cache: Any) -> LogitsAndCache:
        cache = cache or _empty_cache(self.cfg, self.device, len(tokens))
        new = torch.ones_like(tokens) if mask is None else mask[:, -tokens.shape[1] :]
        logits = self.model(tokens, return_type="logits", attention_mask=new, past_kv_cache=cache)
        return LogitsAndCache(logits, cache)

    def random_twin(self, seed: int) -> HookedModel:
        """Return the same architecture with random weights, and the task it is asked about.

        Raises:
            NotApplicable: this model was handed over as an object that cannot be built anew.
        """
        if self.make_twin is None:
            raise NotApplicable(
                f"no random-weight twin of {self.provenance.checkpoint} can be made: a"
                f" {self.provenance.wrapper} handed over as an object does not say how it was"
                " initialised; load it by name or folder instead."
            )
        twin = self.make_twin(seed)
        task = self.provenance.training.get("task")
        return (
            twin
            if task is None
            else replace(twin, provenance=replace(twin.provenance, training={"task": task}))
        )


class LogitsAndCache(NamedTuple):
    """Logits of the columns that ran, and the KV cache with them in it."""

    logits: Float[Tensor, "batch new d_vocab"]
    cache: Any


ModelLike = str | Path | HookedModel | nn.Module


def load_model(
    spec: ModelLike,
    *,
    revision: str | None = None,
    tokenizer: Any | None = None,
    wrapper: Wrapper = "auto",
    processing: Processing = "none",
    prepend_bos: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
) -> HookedModel:
    """Load a checkpoint as a TransformerLens hooked model.

    Args:
        spec: a hub name (`gpt2`, `EleutherAI/pythia-160m@step3000`), a Hugging Face folder, a
            toolkit folder, a bundled name (`toy/s5`), a state-dict file beside its config.json, a
            Hugging Face model, or a TransformerLens model.
        revision: hub revision, or "stepN" of a toolkit folder; the same as `spec@revision`.
        tokenizer: used instead of the checkpoint's own.
        wrapper: "auto" takes `HookedTransformer` for GPT-2 and GPT-NeoX shapes where
            TransformerLens has it (3.x), and `TransformerBridge` in compatibility mode otherwise.
        processing: "none" keeps raw weights; "compatible" folds LayerNorm, centres writing weights
            and the unembedding.
        prepend_bos: whether prompts start with the beginning-of-sequence token; None takes the
            architecture's default.
        dtype: data type of the weights.
        device: device to load onto; None takes CUDA where there is one. A model given as an object
            is never moved.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, incomplete, would execute code, or has
            no such revision.
    """
    if isinstance(spec, HookedModel):
        return spec
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(spec, nn.Module):
        if hasattr(spec, "hook_dict"):
            return _wrap_hooked(spec, tokenizer, prepend_bos)
        named = f"{type(spec).__name__} object"
        own = copy.deepcopy(
            spec
        )  # a Bridge rebuilds the model it wraps; the user's object stays as it is
        return _wrap_hf(
            own,
            tokenizer,
            named,
            None,
            wrapper=wrapper,
            processing=processing,
            prepend_bos=prepend_bos,
        )
    understood = parse_spec(str(spec), revision)
    if understood.kind == "toolkit" and (network := _network_of(understood)):
        return _load_network(understood, network, device)
    hf_model, own_tokenizer, training = _load_hf(understood, dtype)
    hf_model.to(device)
    return _wrap_hf(
        hf_model,
        tokenizer or own_tokenizer,
        understood.text.removesuffix(f"@{understood.revision}"),
        understood.revision,
        wrapper=wrapper,
        processing=processing,
        prepend_bos=prepend_bos,
        training=training,
    )


def takes_model(
    function: Callable[Concatenate[HookedModel, P], R],
) -> Callable[Concatenate[ModelLike, P], R]:
    """Let the first argument of `function` be whatever `load_model` takes: the door for users.

    >>> @takes_model
    ... def wrapper(model: HookedModel) -> str:
    ...     return model.provenance.wrapper
    >>> wrapper("toy/s5")
    'GroupMLP'
    """

    @functools.wraps(function)
    def with_model(model: ModelLike, /, *args: P.args, **options: P.kwargs) -> R:
        return function(load_model(model), *args, **options)

    return with_model


def hook_classes() -> tuple[type, type]:
    """Return TransformerLens' `HookedRootModule` and `HookPoint`, for networks with hook points of
    their own."""
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.HookedRootModule import HookedRootModule

    return HookedRootModule, HookPoint


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer` (3.x)."""
    return importlib.util.find_spec("transformer_lens.HookedTransformer") is not None


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide numbers."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _load_hf(spec: CheckpointSpec, dtype: torch.dtype) -> tuple[Any, Any | None, Mapping[str, Any]]:
    """Return the Hugging Face model, its tokenizer or None, and a toolkit folder's training
    record."""
    local = spec.kind != "hub"
    folder = spec.path.parent if spec.kind == "state_dict" else spec.path
    if spec.kind == "state_dict" or (spec.kind == "toolkit" and spec.revision):
        model = _hf_from_state(folder, _state_of(spec), dtype, spec.text)
    else:
        model = _hf_from_pretrained(spec, dtype)
    record = read_record(folder) if spec.kind == "toolkit" else None
    training = {"task": record.task, "training": record.training} if record else {}
    return (
        model,
        _load_tokenizer(spec, folder if local else None, model.config.vocab_size),
        training,
    )


def _hf_from_pretrained(spec: CheckpointSpec, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with no_progress_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                spec.location,
                revision=spec.revision or "main",
                dtype=dtype,
                attn_implementation="eager",
                trust_remote_code=False,
                local_files_only=spec.kind != "hub",
                output_loading_info=True,
            )
    except Exception as error:
        raise CheckpointError(_why_not(spec, error)) from error
    kept = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtype not in kept:
        raise CheckpointError(
            f"{spec.text} was loaded in {', '.join(map(str, kept))} though {dtype} was asked for,"
            f" under {installed()}; save it in {dtype}."
        )
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(
            f"{spec.text} lacks {len(info['missing_keys'])} of the model's weights ({some}, ...),"
            " which would be drawn at random; the checkpoint is incomplete."
        )
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing its bar while weights load."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _why_not(spec: CheckpointSpec, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{spec.text} needs code from the checkpoint to be executed, which the toolkit never"
            " does."
        )
    if spec.kind == "hub":
        return (
            f"{spec.text!r} is neither a folder here nor could it be loaded from the hub; check the"
            f" name and revision, the connection and HF_HUB_OFFLINE. ({type(error).__name__}:"
            f" {str(error).splitlines()[0]})"
        )
    return (
        f"{spec.text} could not be loaded; its weights may be truncated or missing."
        f" ({type(error).__name__}: {error})"
    )


def _state_of(spec: CheckpointSpec) -> Mapping[str, Tensor]:
    return (
        read_state(spec.path)
        if spec.kind == "state_dict"
        else read_checkpoint(spec.path, spec.revision).state
    )


def _hf_from_state(folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype, text: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", trust_remote_code=False
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise CheckpointError(
            f"{text} does not fit its config.json: {len(missing)} weights missing {missing[:3]}, "
            f"{len(unexpected)} unknown {unexpected[:3]}."
        )
    return model.to(dtype)


def _load_tokenizer(spec: CheckpointSpec, folder: Path | None, d_vocab: int) -> Any | None:
    """Return the tokenizer, or None where there is none; a stand-in with next to no vocabulary
    counts as none."""
    from transformers import AutoTokenizer

    if folder is not None and not has_tokenizer_files(folder):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder or spec.location),
            revision="main" if folder else spec.revision or "main",
            trust_remote_code=False,
            local_files_only=folder is not None,
        )
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {spec.text} could not be read ({type(error).__name__}: {error})."
        ) from error
    return tokenizer if len(tokenizer) > d_vocab // 2 else None


def _wrap_hf(
    hf_model: Any,
    tokenizer: Any | None,
    checkpoint: str,
    revision: str | None,
    *,
    wrapper: Wrapper,
    processing: Processing,
    prepend_bos: bool | None,
    training: Mapping[str, Any] | None = None,
) -> HookedModel:
    """Wrap a Hugging Face causal language model; the weights are fingerprinted before anything
    touches them."""
    hf_model.eval()
    state = hf_model.state_dict()
    check_finite(state, checkpoint)
    mark = fingerprint(state)
    chosen = _choose_wrapper(wrapper, hf_model)
    probe = probe_tokens(hf_model)
    with torch.no_grad():  # before a Bridge takes the model apart
        expected = hf_model(probe).logits
    build = _hooked_transformer if chosen == "HookedTransformer" else _bridge
    model = build(hf_model, tokenizer, processing).eval()
    with torch.no_grad():
        logits = model(probe, return_type="logits")
    check_logits(logits, expected, raw=processing == "none", name=checkpoint)
    if prepend_bos is None and tokenizer is not None:
        prepend_bos = bool(model.cfg.default_prepend_bos) and tokenizer.bos_token_id is not None
    parameter = next(hf_model.parameters())
    provenance = Provenance(
        checkpoint=checkpoint,
        revision=revision,
        fingerprint=mark,
        wrapper=chosen,
        processing=processing,
        prepend_bos=prepend_bos,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        versions=versions(),
        training=training or {},
    )
    twin = functools.partial(
        _hf_twin, hf_model.config, tokenizer, checkpoint, parameter, chosen, processing, prepend_bos
    )
    return HookedModel(model, tokenizer, provenance, twin, heeds_mask(model, probe, logits))


def _choose_wrapper(
    wrapper: Wrapper, hf_model: Any
) -> Literal["HookedTransformer", "TransformerBridge"]:
    shaped = _hooked_transformer_config(hf_model) is not None
    if wrapper == "HookedTransformer" and not has_hooked_transformer():
        raise CheckpointError(
            f"the installed TransformerLens {importlib.metadata.version('transformer-lens')} has no"
            ' HookedTransformer; use wrapper="auto", or transformer-lens 3.9.'
        )
    if wrapper == "HookedTransformer" and not shaped:
        raise CheckpointError(
            f"{type(hf_model).__name__} has no HookedTransformer converter here; use"
            ' wrapper="auto".'
        )
    if wrapper == "auto":
        return "HookedTransformer" if has_hooked_transformer() and shaped else "TransformerBridge"
    return wrapper


def _empty_cache(cfg: Any, device: torch.device, batch: int) -> Any:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(cfg, device, batch)


def _hooked_transformer(hf_model: Any, tokenizer: Any | None, processing: Processing) -> Any:
    """Build a `HookedTransformer` from our own reading of config.json; TransformerLens converts the
    weights only."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import (
        convert_gpt2_weights,
        convert_neox_weights,
    )

    settings = _hooked_transformer_config(hf_model)
    assert settings is not None
    parameter = next(hf_model.parameters())
    config = HookedTransformerConfig(
        **settings, dtype=parameter.dtype, device=str(parameter.device)
    )
    convert = (
        convert_gpt2_weights
        if config.original_architecture == "GPT2LMHeadModel"
        else convert_neox_weights
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # its deprecation is known; 4.x takes the Bridge
        model = HookedTransformer(config)
    state = {name: tensor.detach().clone() for name, tensor in convert(hf_model, config).items()}
    model.load_and_process_state_dict(
        state, **({} if processing == "compatible" else _PROCESS_NOTHING)
    )
    if tokenizer is not None:
        with _no_bos_lookup(tokenizer) as usable:
            model.set_tokenizer(usable)
    return model


def _hooked_transformer_config(hf_model: Any) -> dict[str, Any] | None:
    """Return the `HookedTransformerConfig` settings of a GPT-2 or GPT-NeoX shape, or None for any
    other."""
    c, name = hf_model.config, type(hf_model).__name__
    shared = {
        "original_architecture": name,
        "d_vocab": c.vocab_size,
        "normalization_type": "LN",
        "init_weights": False,
    }
    if name == "GPT2LMHeadModel" and c.activation_function in ("gelu", "gelu_new", "relu", "silu"):
        return shared | {
            "d_model": c.n_embd,
            "d_head": c.n_embd // c.n_head,
            "n_heads": c.n_head,
            "d_mlp": c.n_inner or 4 * c.n_embd,
            "n_layers": c.n_layer,
            "n_ctx": c.n_positions,
            "eps": c.layer_norm_epsilon,
            "act_fn": c.activation_function,
            "use_attn_scale": c.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
        }
    rope = getattr(c, "rope_parameters", None) or {}
    plain_rope = rope.get("rope_type", "default") == "default"
    if (
        name == "GPTNeoXForCausalLM"
        and c.hidden_act in ("gelu", "gelu_new", "relu", "silu")
        and plain_rope
    ):
        d_head = c.hidden_size // c.num_attention_heads
        return shared | {
            "d_model": c.hidden_size,
            "d_head": d_head,
            "n_heads": c.num_attention_heads,
            "d_mlp": c.intermediate_size,
            "n_layers": c.num_hidden_layers,
            "n_ctx": c.max_position_embeddings,
            "eps": c.layer_norm_eps,
            "act_fn": c.hidden_act,
            "parallel_attn_mlp": c.use_parallel_residual,
            "positional_embedding_type": "rotary",
            "rotary_adjacent_pairs": False,
            "rotary_dim": round(
                rope.get("partial_rotary_factor", getattr(c, "rotary_pct", 1.0)) * d_head
            ),
            "rotary_base": int(rope.get("rope_theta", getattr(c, "rotary_emb_base", 10000))),
            "default_prepend_bos": False,
        }
    return None


def _bridge(hf_model: Any, tokenizer: Any | None, processing: Processing) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf_model.config._attn_implementation = "eager"  # attention patterns exist only there
    with (
        _no_bos_lookup(tokenizer) as usable,
        torch.random.fork_rng(),
    ):  # a Bridge draws weights it then throws away
        model = build_bridge_from_module(
            hf_model,
            type(hf_model).__name__,
            hf_config=hf_model.config,
            tokenizer=usable,
            model_name="local",
        )
    model.enable_compatibility_mode(disable_warnings=True, no_processing=processing == "none")
    hand_on_cache(model)
    return model


@contextmanager
def _no_bos_lookup(tokenizer: Any | None) -> Iterator[Any | None]:
    """Yield a copy of `tokenizer` that TransformerLens takes as it is.

    TransformerLens loads a tokenizer a second time by name unless it already adds the
    beginning-of-sequence token, which fails for one made in memory and would undo changes of the
    user. The copy only says that it does, for the moment.
    """
    if tokenizer is None:
        yield None
        return
    usable = copy.deepcopy(tokenizer)
    kept = usable.init_kwargs
    usable.init_kwargs = {
        **kept,
        "name_or_path": kept.get("name_or_path", ""),
        "add_bos_token": True,
    }
    try:
        yield usable
    finally:
        usable.init_kwargs = kept


def _hf_twin(
    config: Any,
    tokenizer: Any | None,
    checkpoint: str,
    like: Tensor,
    wrapper: Wrapper,
    processing: Processing,
    prepend_bos: bool | None,
    seed: int,
) -> HookedModel:
    from transformers import AutoModelForCausalLM

    name = f"{checkpoint} (random weights, seed {seed})"
    with torch.random.fork_rng():  # around the wrapping too: a Bridge draws weights of its own
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(
            like.device, like.dtype
        )
        return _wrap_hf(
            fresh,
            tokenizer,
            name,
            None,
            wrapper=wrapper,
            processing=processing,
            prepend_bos=prepend_bos,
        )


def _network_of(spec: CheckpointSpec) -> Any | None:
    """The class of a toolkit checkpoint, or None of a Hugging Face folder with a toy's record."""
    architecture = read_record(spec.path).architecture
    points = importlib.metadata.entry_points(group=NETWORKS, name=architecture)
    if points:
        return next(iter(points)).load()
    if (spec.path / "config.json").is_file():
        return None
    known = sorted(importlib.metadata.entry_points(group=NETWORKS).names)
    raise CheckpointError(
        f"{spec.text} is a {architecture}, which no installed package provides."
        f"{nearest(architecture, known)} Installed are {', '.join(known) or 'none'}."
        " Install what provides it again (pip install -e . in a checkout)."
    )


def _load_network(spec: CheckpointSpec, architecture: Any, device: str) -> HookedModel:
    stored = read_checkpoint(spec.path, spec.revision)
    network = architecture.from_config(stored.config)
    try:
        network.load_state_dict(dict(stored.state))
    except RuntimeError as error:
        raise CheckpointError(
            f"{spec.text}: the weights do not fit the recorded architecture ({error})."
        ) from error
    hooked = _wrap_hooked(network.to(device), None, None)
    checkpoint = spec.text.removesuffix(f"@{spec.revision}")
    provenance = replace(
        hooked.provenance,
        checkpoint=checkpoint,
        revision=spec.revision,
        processing="none",
        training={"task": dict(stored.task), "training": dict(stored.training)},
    )
    return replace(
        hooked,
        provenance=provenance,
        make_twin=functools.partial(_module_twin, network, checkpoint),
    )


def _wrap_hooked(module: nn.Module, tokenizer: Any | None, prepend_bos: bool | None) -> HookedModel:
    """Take a TransformerLens model as it is: never moved, its processing unknown."""
    state = dict(
        module.named_parameters()
    )  # not the buffers: HookedTransformer keeps a -inf among them
    hand_on_cache(module)
    cfg = getattr(module, "cfg", None)
    checkpoint = str(getattr(cfg, "model_name", None) or type(module).__name__)
    check_finite(state, checkpoint)
    tokenizer = tokenizer or getattr(module, "tokenizer", None)
    if prepend_bos is None and tokenizer is not None:
        prepend_bos = (
            bool(getattr(cfg, "default_prepend_bos", False)) and tokenizer.bos_token_id is not None
        )
    parameter = next(module.parameters())
    provenance = Provenance(
        checkpoint=checkpoint,
        revision=None,
        fingerprint=fingerprint(state),
        wrapper=type(module).__name__,
        processing="unknown",
        prepend_bos=prepend_bos,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        versions=versions(),
    )
    make_twin = None
    if hasattr(module, "random_like"):
        make_twin = functools.partial(_module_twin, module, checkpoint)
    return HookedModel(module.eval(), tokenizer, provenance, make_twin)


def _module_twin(module: Any, checkpoint: str, seed: int) -> HookedModel:
    hooked = _wrap_hooked(module.random_like(seed), None, None)
    name = f"{checkpoint} (random weights, seed {seed})"
    return replace(
        hooked, provenance=replace(hooked.provenance, checkpoint=name, processing="none")
    )
