"""`applied(model, {hook name: edit})`: every edit of an activation goes through here.

An edit is a pure function of one activation and its `Site`, called as `edit(activation,
hook=site)`: TransformerLens' own hook signature, so the same function works in plain
`model.run_with_hooks`. Where it happens is said by name.

What would fool it, and is refused: a name that no hook point has; a hook point that is switched off
and would never fire; `hook_resid_mid` of a Bridge, which edits the MLP's input and not the stream;
an edit that returns another shape, dtype or device, or changes the activation in place; and, at the
end, an edit that never ran. Nothing is left on the model on any path out.

Source: hook points as in TransformerLens; the situations were measured on its versions 3.9 and 4.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechinterp_toolkit.errors import HookError, nearest
from mechinterp_toolkit.guards import cached_columns, check_cache, given_cache
from mechinterp_toolkit.model import HookedModel, takes_model


@dataclass(frozen=True)
class Site:
    """Where an edit finds itself: what it is called with as `hook`."""

    name: str
    """The hook name as it was asked for."""

    mask: Bool[Tensor, "batch pos"] | None = None
    """True at real tokens of the columns that run; None where the caller gave no mask."""

    positions: Int[Tensor, " pos"] | None = None
    """Absolute column of each position that runs, from 0, what a KV cache holds counted in; None
    outside token models."""

    prompt_length: int | None = None
    """Columns of the prompt, padding included, as the caller said; None where it was not said."""

    order: Int[Tensor, "batch pos"] | None = None
    """Place of each token among the real tokens of its row, from 0, cached ones counted in; -1 at
    padding."""

    bos: Bool[Tensor, "batch pos"] | None = None
    """True at a row's first token where it is the beginning-of-sequence token; None where the ids
    or it are not known."""

    prompt_tokens: Int[Tensor, " batch"] | None = None
    """Real tokens in the prompt of each row; None where nobody said how long the prompt is."""

    group: Int[Tensor, " batch"] | None = None
    """Which group each row belongs to (the branches of guidance), as the caller said."""

    memory: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Shared by the edits of one block, and emptied whenever a forward pass begins at column 0.

    What an edit notes on the prompt it still knows while tokens are generated, with a KV cache and
    without."""

    @property
    def generated(self) -> Bool[Tensor, " pos"]:
        """Which of the positions that run lie behind the prompt.

        Raises:
            HookError: nobody said how long the prompt is, or the model runs no tokens.
        """
        if self.positions is None or self.prompt_length is None:
            raise HookError(
                f"the edit at {self.name!r} asks what is prompt and what was generated; run it"
                " inside applied(..., prompt_length=...) on a model that reads tokens."
            )
        return self.positions >= self.prompt_length

    def layer(self) -> int:
        """Return the layer of a name like "blocks.3.hook_resid_pre"; raises `HookError` for any
        other."""
        match = re.match(r"blocks\.(\d+)\.", self.name)
        if match is None:
            raise HookError(
                f"{self.name!r} lies in no layer; expected a name like 'blocks.3.hook_resid_pre'."
            )
        return int(match[1])


Edit = Callable[..., Tensor]
"""`edit(activation, *, hook: Site) -> Tensor` of the same shape, dtype and device, never the
activation changed in place."""

Reader = Callable[..., None]
"""`reader(activation, *, hook: Site)`: looks at an activation and returns nothing."""

Edits = Mapping[str, Edit | Sequence[Edit]]

# Hook points that exist but fire only after a switch of the config: suffix of the name -> (setting,
# how to set it).
_GATED = {
    "attn.hook_result": ("use_attn_result", "set_use_attn_result(True)"),
    "hook_mlp_in": ("use_hook_mlp_in", "set_use_hook_mlp_in(True)"),
    "hook_attn_in": ("use_attn_in", "set_use_attn_in(True)"),
    "hook_q_input": ("use_split_qkv_input", "set_use_split_qkv_input(True)"),
    "hook_k_input": ("use_split_qkv_input", "set_use_split_qkv_input(True)"),
    "hook_v_input": ("use_split_qkv_input", "set_use_split_qkv_input(True)"),
}


@dataclass
class _Running:
    """Which columns the model is running, noted as each forward pass begins."""

    mask: Tensor | None = None
    prompt_length: int | None = None
    group: Tensor | None = None
    tokenizer: Any | None = None
    start: int = 0
    batch: int | None = None
    length: int | None = None
    known: dict[str, Tensor | None] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)

    def note(self, given: Any, options: Mapping[str, Any]) -> None:
        self.start = cached_columns(given_cache(options))
        batched = isinstance(given, Tensor) and given.dim() >= 2
        self.batch, self.length = given.shape[:2] if batched else (None, None)
        if self.start == 0:
            self.memory.clear()
        self.known = (
            {} if self.length is None else self._known(given, options.get("attention_mask"))
        )

    def check(self, cache: Any) -> None:
        """Raise `CacheError` unless the columns that ran are in the cache.

        Edits would take the next columns for the first ones.
        """
        if cache is not None and self.length is not None:
            expected = self.start + self.length
            if cached_columns(cache) != expected:
                check_cache(cache, expected)

    def unflattened(self, activation: Tensor) -> Tensor:
        """A view with batch and position apart, where the model runs them as one (OPT's MLP)."""
        if self.batch is None or self.length is None or activation.dim() != 2:
            return activation
        if len(activation) != self.batch * self.length:
            return activation
        return activation.unflatten(0, (self.batch, self.length))

    def here(self, site: Site, device: torch.device) -> Site:
        known: dict[str, Any] = {
            k: None if part is None else part.to(device) for k, part in self.known.items()
        }
        return replace(site, memory=self.memory, **known)

    def _known(self, given: Tensor, told: Tensor | None) -> dict[str, Tensor | None]:
        """What a Site says of the columns that run; `told` is the mask the model itself was
        given."""
        batch, end = len(given), self.start + given.shape[1]
        if self.group is not None and len(self.group) != batch:
            raise HookError(
                f"group names {len(self.group)} rows but {batch} run; give one group per row of the"
                " batch."
            )
        if self.mask is not None and len(self.mask) != batch:
            raise HookError(
                f"mask has {len(self.mask)} rows but {batch} run; run all of its prompts in one"
                " forward pass, or let `record` and `activations` place the edits (edits=...),"
                " which split the mask with the prompts."
            )
        positions = torch.arange(self.start, end, device=given.device)
        mask = self._columns(end, told)
        if mask is None:
            order, prompt = (
                positions.expand(batch, -1),
                torch.full((batch,), self.prompt_length or 0),
            )
        else:
            mask = mask.to(given.device)
            order = (mask.long().cumsum(1) - 1).masked_fill(~mask, -1)[:, positions]
            prompt = mask[:, : self.prompt_length or 0].sum(1)
        return {
            "positions": positions,
            "mask": None if mask is None else mask[:, positions],
            "order": order,
            "bos": self._bos(given, order),
            "prompt_tokens": None if self.prompt_length is None else prompt,
            "group": self.group,
        }

    def _columns(self, end: int, told: Tensor | None) -> Tensor | None:
        """The mask of all columns up to `end`; what lies behind it was generated and is real."""
        mask = self.mask
        if mask is None and told is not None and told.shape[1] == end:
            mask = told.bool()
        if mask is not None and (missing := end - mask.shape[1]) > 0:
            mask = torch.cat([mask, mask.new_ones(len(mask), missing)], dim=1)
        return None if mask is None else mask[:, :end]

    def _bos(self, given: Tensor, order: Tensor) -> Tensor | None:
        first = order == 0
        if not first.any():
            return first
        if (
            self.tokenizer is None or given.is_floating_point()
        ):  # embeddings do not say which tokens they are
            return None
        token = self.tokenizer.bos_token_id
        return first & (given == (-1 if token is None else token))


@dataclass
class _Placed:
    """One edit on one hook point, and how often it ran."""

    site: Site
    edit: Edit
    running: _Running
    calls: int = 0
    handles: list[Any] = field(default_factory=list)

    def __call__(self, activation: Tensor, hook: Any) -> Tensor:
        self.calls += 1
        site = self.running.here(self.site, activation.device)
        seen = self.running.unflattened(activation)
        # Inference tensors keep no version to notice a change in place, so the edit gets a copy.
        if activation.is_inference():
            result = self.edit(seen.clone(), hook=site)
        else:
            version = activation._version
            result = self.edit(seen, hook=site)
            _check_not_in_place(activation, version, self.site.name)
        _check_result(result, seen, self.site.name)
        return activation if result is seen else result.reshape(activation.shape)


@takes_model
@contextmanager
def applied(
    model: HookedModel,
    edits: Edits,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
    prompt_length: int | None = None,
    group: Int[Tensor, " batch"] | None = None,
) -> Iterator[HookedModel]:
    """Run everything inside the `with` block with `edits` in place, and leave nothing behind.

    Several edits on one hook point, under one name or several, run in the order given. Blocks may
    be nested; outer edits run first. Activations that no edit names are untouched.

    Args:
        model: a `HookedModel` or a TransformerLens model.
        edits: hook name (as `HookedTransformer` spells it; canonical Bridge names work too) ->
            edit, or several in order.
        mask: True at real tokens of the prompt, handed on to edits as `Site.mask`; columns behind
            it count as real. None takes the attention mask that the model itself is run with, if
            any.
        prompt_length: columns of the prompt, padding included, for edits that ask what was
            generated.
        group: which group each row belongs to, for edits that act on one branch only.

    Yields:
        The model as a `HookedModel`.

    Raises:
        HookError: an unknown or gated name, a broken edit, or (on a clean way out) an edit that
            never ran.
        CacheError: a forward pass left its columns out of the KV cache that it was given.

    Example:
        >>> def zero(activation, hook):
        ...     return torch.zeros_like(activation)
        >>> with applied(model, {"blocks.0.attn.hook_z": zero}):  # doctest: +SKIP
        ...     logits = model.logits(tokens)
    """
    running = _Running(mask, prompt_length, group, model.tokenizer)
    placed = [
        _Placed(Site(name, mask, prompt_length=prompt_length), edit, running)
        for name, given in edits.items()
        for edit in (given if isinstance(given, Sequence) else (given,))
    ]
    # every name is checked before any edit is placed
    points = {name: hook_point(model, name) for name in edits}
    if model.is_bridge:
        _refuse_resid_mid(model, points)
    with _in_place(points, placed), _noting(model.model, running):
        yield model


@takes_model
@contextmanager
def observed(model: HookedModel, readers: Mapping[str, Reader]) -> Iterator[HookedModel]:
    """Run everything inside the `with` block with `readers` looking on; nothing is changed and
    nothing left behind.

    Args:
        model: a `HookedModel` or a TransformerLens model.
        readers: hook name -> `reader(activation, hook=site)`; it must copy what it keeps.

    Raises:
        HookError: an unknown or gated name, or (on a clean way out) a hook point that never fired.
    """
    points = {name: hook_point(model, name) for name in readers}
    running = _Running(tokenizer=model.tokenizer)
    placed = [_Placed(Site(name), _reading(reader), running) for name, reader in readers.items()]
    with _in_place(points, placed), _noting(model.model, running):
        yield model


def hook_point(model: HookedModel, name: str) -> Any:
    """Return the `HookPoint` called `name`.

    Raises:
        HookError: no hook point has the name (the nearest are suggested), or it is switched off.
    """
    points = model.hook_points
    point = points.get(name)
    if point is None:
        raise HookError(
            f"{model.provenance.checkpoint} ({model.provenance.wrapper}) has no hook point"
            f" {name!r}.{nearest(name, points)}"
        )
    for suffix, (setting, how) in _GATED.items():
        if name.endswith(suffix) and not getattr(getattr(model.model, "cfg", None), setting, False):
            raise HookError(
                f"{name!r} is switched off and would never fire; call model.{how} first."
            )
    return point


def _refuse_resid_mid(model: HookedModel, points: Mapping[str, Any]) -> None:
    for name, point in points.items():
        match = re.match(r"blocks\.(\d+)\.", name)
        middle = model.hook_points.get(f"{match[0]}hook_resid_mid") if match else None
        if match and (name.endswith("hook_resid_mid") or (middle is not None and middle is point)):
            layer = int(match[1])
            raise HookError(
                f"{name!r} of a TransformerBridge is the MLP's input, not the residual stream: an"
                f" edit there would leave the stream as it was. Edit 'blocks.{layer}.hook_attn_out'"
                f" to change what attention adds, or 'blocks.{layer + 1}.hook_resid_pre' to change"
                " the stream after the block."
            )


def _check_result(result: Any, given: Tensor, name: str) -> None:
    if not isinstance(result, Tensor):
        raise HookError(
            f"the edit at {name!r} returned {type(result).__name__}; return a new tensor, also for"
            " no change."
        )
    for what in ("shape", "dtype", "device"):
        expected, got = getattr(given, what), getattr(result, what)
        if expected != got:
            raise HookError(
                f"the edit at {name!r} returned {what} {_say(got)} instead of {_say(expected)}."
            )


def _check_not_in_place(given: Tensor, version: int, name: str) -> None:
    if given._version != version:
        raise HookError(
            f"the edit at {name!r} changed the activation in place, which corrupts every tensor"
            " cached from it; return a new tensor (torch.where, clone)."
        )


def _say(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


@contextmanager
def _in_place(points: Mapping[str, Any], placed: Sequence[_Placed]) -> Iterator[None]:
    try:
        for one in placed:
            _place(points[one.site.name], one)
        yield
    finally:
        for one in placed:
            _remove(points[one.site.name], one)
    idle = sorted({one.site.name for one in placed if one.calls == 0})
    if idle:
        raise HookError(
            f"what was placed at {', '.join(idle)} never ran: no forward pass inside the block"
            " reached it. Run the model inside the block; on some architectures a hook point is"
            " listed but never used."
        )


@contextmanager
def _noting(model: Any, running: _Running) -> Iterator[None]:
    """Tell `running` about each forward pass. TransformerLens generates through `forward` itself,
    past module hooks."""
    outer = vars(model).get("forward")
    forward = model.forward

    def noted(*args: Any, **options: Any) -> Any:
        running.note(args[0] if args else options.get("input"), options)
        answer = forward(*args, **options)
        running.check(given_cache(options))
        return answer

    model.forward = noted
    try:
        yield
    finally:
        if outer is None:
            del model.forward
        else:
            model.forward = outer


def _reading(reader: Reader) -> Edit:
    def look(activation: Tensor, hook: Site) -> Tensor:
        reader(activation, hook=hook)
        return activation

    return look


def _place(point: Any, one: _Placed) -> None:
    # Permanent, so that a `reset_hooks` inside the block, which TransformerLens' own methods call,
    # leaves it alone.
    point.add_hook(one, is_permanent=True)
    one.handles.append(point.fwd_hooks[-1])


def _remove(point: Any, one: _Placed) -> None:
    for handle in one.handles:
        handle.hook.remove()
        point.fwd_hooks = [kept for kept in point.fwd_hooks if kept is not handle]
    one.handles.clear()
