"""A steering vector and what can be done with it: add, clamp, ablate, everywhere or where asked.

A `SteeringVector` knows where it belongs (hook point), which way it points, how long it is and
where it comes from. It is applied as an edit: `{vector.hook_point: vector.add(2.0)}` for `applied`
or `generate`. Which tokens are edited is said by `Where`; the result is the same with and without a
KV cache, and in a padded batch.

What would fool it: a direction found in processed weights used on raw ones (the processing is part
of the provenance); the beginning-of-sequence token, left out by default; a vector so long that the
model merely breaks, for which `steering_sweep` measures what happens to neutral prompts.

Source: Turner et al. 2023, arXiv:2308.10248 (activation addition); Rimsky et al. 2024,
arXiv:2312.06681 (CAA); Arditi et al. 2024, arXiv:2406.11717 (directional ablation); Lee et al.
2025, arXiv:2409.05907 (conditional steering).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.where import Where
from mechinterp_toolkit.intervention import Site
from mechinterp_toolkit.model import HookedModel

Axis = Literal["", "pos", "head"]

SAME_MODEL = ("fingerprint", "processing", "dtype")
"""Keys of the provenance that have to agree before two vectors are added."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A vector of one hook point, with its origin. `2 * a - b` and the like give a new one.

    >>> vector = SteeringVector.of("blocks.6.hook_resid_post", torch.tensor([3.0, 0.0, 4.0]))
    >>> vector.norm, (vector - vector / 2).vector
    (5.0, tensor([1.5000, 0.0000, 2.0000]))
    >>> edits = {vector.hook_point: vector.add(2.0)}  # for `applied` or `generate`
    """

    hook_point: str
    """Where it belongs, e.g. "blocks.6.hook_resid_post"."""

    direction: Float[Tensor, "*axes d"]
    """The vector over its norm (over all axes together); zeros for the zero vector."""

    norm: float
    """Its norm, in units of the activation: a multiplier of 1 adds as much."""

    axis: Axis = ""
    """What stands before the features: nothing, "pos" (one row per prompt token from the first) or
    "head"."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made (`method`) and from what (`checkpoint`, `fingerprint`, `processing`, `n`,
    ...); plain data."""

    @classmethod
    def of(
        cls,
        hook_point: str,
        vector: Float[Tensor, "*axes d"],
        *,
        axis: Axis = "",
        **provenance: Any,
    ) -> SteeringVector:
        """Return the steering vector with the entries of `vector`.

        Raises:
            ToolkitError: an entry is not finite, or the shape does not fit `axis`.
        """
        axes = 2 if axis else 1
        if vector.dim() != axes:
            raise ToolkitError(
                f"a steering vector with axis={axis!r} has {axes} axes; got shape"
                f" {tuple(vector.shape)}."
            )
        whole = vector.detach().double()
        if not whole.isfinite().all():
            raise ToolkitError(
                f"the vector for {hook_point!r} holds a NaN or infinity; check what it was made"
                " from."
            )
        norm = float(whole.norm())
        direction = whole / norm if norm else whole
        kept = torch.promote_types(vector.dtype, torch.float32)
        return cls(hook_point, direction.to(kept).clone(), norm, axis, provenance)

    @property
    def vector(self) -> Float[Tensor, "*axes d"]:
        """The vector itself, `direction * norm`."""
        return self.direction * self.norm

    def add(
        self, multiplier: float = 1.0, *, where: Where | None = None, when: Gate | None = None
    ) -> AddVector:
        """Return the edit x + multiplier * vector."""
        return AddVector(self.vector * multiplier, self.axis, where or Where(), when)

    def clamp(
        self, value: float, *, where: Where | None = None, when: Gate | None = None
    ) -> SetProjection:
        """Return the edit that sets the projection on the direction to `value`.

        In units of the activation.

        Raises:
            ToolkitError: the zero vector, or a vector per position or head, which has no single
                direction.
        """
        if self.axis or not self.norm:
            what = f"has its own row per {self.axis}" if self.axis else "is zero"
            raise ToolkitError(
                f"the vector for {self.hook_point!r} {what} and has no direction to clamp or"
                " ablate."
            )
        return SetProjection(self.direction, value, where or Where(), when)

    def ablate(
        self, mean: float = 0.0, *, where: Where | None = None, when: Gate | None = None
    ) -> SetProjection:
        """Return the edit that removes the direction: its projection becomes 0, or a `mean`."""
        return self.clamp(mean, where=where, when=when)

    def check_fits(self, model: HookedModel) -> None:
        """Raise `ToolkitError` where the vector is known to come from another model or form."""
        for key in ("fingerprint", "processing"):
            ours, theirs = self.provenance.get(key), getattr(model.provenance, key)
            if ours is not None and ours != theirs:
                raise ToolkitError(
                    f"the vector for {self.hook_point!r} was made with {key} {ours!r}"
                    f" ({self.provenance.get('checkpoint')}), but {model.provenance.checkpoint} has"
                    f" {theirs!r}; train it on the model it is used on."
                )

    def to(self, device: torch.device | str) -> SteeringVector:
        """Return the same vector on `device`."""
        return replace(self, direction=self.direction.to(device))

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """Return the sum; raises `ToolkitError` for vectors of two hook points or models."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        self._check_matches(other)
        return self._made(self.vector + other.vector, f"({self._method} + {other._method})")

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        """Return the difference; errors are those of +."""
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def __mul__(self, factor: float | int) -> SteeringVector:
        """Return the vector times a number."""
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return self._made(self.vector * factor, f"{factor:g} * {self._method}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> SteeringVector:
        """Return the vector over a number."""
        return self * (1 / divisor)

    def __neg__(self) -> SteeringVector:
        """Return the vector the other way round."""
        return self * -1

    def save(self, path: str | Path) -> Path:
        """Write the vector as safetensors, all else as metadata, and return the path."""
        from safetensors.torch import save_file

        path = Path(path)
        about = {name: getattr(self, name) for name in ("hook_point", "norm", "axis")}
        about["provenance"] = dict(self.provenance)
        save_file(
            {"direction": self.direction.detach().cpu().contiguous()},
            path,
            metadata={"steering_vector": json.dumps(about, allow_nan=False)},
        )
        return path

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Return the vector that `save` wrote, bit for bit.

        Raises:
            ToolkitError: the file is missing or holds something else.
        """
        from safetensors import safe_open

        if not Path(path).is_file():
            raise ToolkitError(f"{path} is no file; expected one written by SteeringVector.save.")
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("steering_vector")
            if about is None:
                raise ToolkitError(
                    f"{path} holds no steering vector; expected a file written by"
                    " SteeringVector.save."
                )
            return cls(direction=file.get_tensor("direction"), **json.loads(about))

    @property
    def _method(self) -> str:
        return str(self.provenance.get("method", "a vector"))

    def _made(self, vector: Tensor, method: str) -> SteeringVector:
        made = {**self.provenance, "method": method}
        return SteeringVector.of(self.hook_point, vector, axis=self.axis, **made)

    def _check_matches(self, other: SteeringVector) -> None:
        ours, theirs = (
            {
                "hook_point": vector.hook_point,
                "axis": vector.axis,
                "shape": tuple(vector.direction.shape),
            }
            | {key: vector.provenance[key] for key in SAME_MODEL if key in vector.provenance}
            for vector in (self, other)
        )
        for what in [key for key in ours if key in theirs and ours[key] != theirs[key]]:
            raise ToolkitError(
                f"vectors of different {what} can't be added: {ours[what]!r} and {theirs[what]!r};"
                " apply them as two edits instead."
            )


@dataclass(frozen=True, eq=False)
class Gate:
    """Decides on the prompt, once, whether a row is steered; changes nothing itself.

    Belongs at the hook point of the edits that ask for it, in front of them, or at an earlier one.
    The decision is made on tokens of the prompt alone, so that it is the same with a KV cache,
    which runs them once, and without.

    >>> vector = SteeringVector.of("blocks.6.hook_resid_post", torch.tensor([3.0, 0.0, 4.0]))
    >>> gate = Gate(vector.direction, threshold=2.0)
    >>> edits = {vector.hook_point: [gate, vector.add(2.0, when=gate)]}
    """

    direction: Float[Tensor, " d"]
    """What the prompt is compared with; its length does not matter."""

    threshold: float
    """A row is steered where its score is above this: in units of the activation, or a cosine in
    [-1, 1]."""

    score: Literal["projection", "cosine"] = "projection"
    """Whether the length of the activation counts."""

    over: Literal["mean", "max", "last"] = "mean"
    """Which score counts for a prompt: the mean of its tokens', the largest, or the last one's."""

    def __call__(
        self, activation: Float[Tensor, "batch pos d"], hook: Site
    ) -> Float[Tensor, "batch pos d"]:
        """Note the decision and return the activation as it is.

        Raises:
            HookError: the prompt is not known here, or was not run.
        """
        if not isinstance(hook, Site):
            raise HookError(
                f"the gate at {getattr(hook, 'name', '?')!r} needs the prompt; run it inside"
                " applied(...)."
            )
        if self not in hook.memory:
            hook.memory[self] = self._open(activation, hook)
        return activation

    def open(self, hook: Site) -> Bool[Tensor, " batch"]:
        """Return which rows are steered.

        Raises:
            HookError: the gate has not seen their prompt.
        """
        decision: Tensor | None = getattr(hook, "memory", {}).get(self)
        if decision is None:
            raise HookError(
                f"the edit at {hook.name!r} waits for a gate that has seen no prompt; place the"
                " gate in front of it, at the same hook point or an earlier one, in one"
                " applied(...) with it."
            )
        return decision

    def _open(self, activation: Tensor, hook: Site) -> Tensor:
        if hook.positions is None or int(hook.positions[0]) != 0:
            raise HookError(
                f"the gate at {hook.name!r} did not see the prompt, which a cache holds; run it"
                " inside too."
            )
        prompt = Where(generated=False).chosen(activation, hook)
        x, v = activation.float(), self.direction.to(activation.device).float()
        score = x @ (v / v.norm())
        if self.score == "cosine":
            score = score / x.norm(dim=-1).clamp_min(torch.finfo(x.dtype).tiny)
        if self.over == "mean":
            return (score * prompt).sum(1) / prompt.sum(1).clamp_min(1) > self.threshold
        if self.over == "max":
            return score.masked_fill(~prompt, -torch.inf).amax(1) > self.threshold
        # The running count of chosen tokens is largest at the last of them.
        last = (prompt.long().cumsum(1) * prompt).argmax(1, keepdim=True)
        return score.gather(1, last)[:, 0] > self.threshold


@dataclass(frozen=True, eq=False)
class AddVector:
    """Add a vector to the chosen tokens; all others stay bit-equal.

    >>> edit = AddVector(torch.tensor([1.0, 2.0]), where=Where(bos=True))
    >>> edit(torch.zeros(1, 1, 2), hook=Site("blocks.0.hook_resid_pre")).tolist()
    [[[1.0, 2.0]]]
    """

    vector: Float[Tensor, "*axes d"]
    """What is added."""

    axis: Axis = ""
    """What stands before the features, see `SteeringVector`."""

    where: Where = field(default_factory=Where)
    """The tokens it is added to."""

    when: Gate | None = None
    """Only rows this gate lets through; None takes all."""

    def __call__(
        self, activation: Float[Tensor, "batch pos *rest"], hook: Site
    ) -> Float[Tensor, "batch pos *rest"]:
        """Return the edited activation.

        Raises:
            HookError: the activation has another shape, or its tokens are not known.
        """
        own = self.vector.shape[1:] if self.axis == "pos" else self.vector.shape
        if activation.shape[2:] != own:  # it might still broadcast, over heads for one
            raise HookError(
                f"a vector {tuple(own)} can't be added at {hook.name!r},"
                f" {tuple(activation.shape[2:])} a token."
            )
        vector = self.vector.to(activation)
        if self.axis == "pos":
            vector = _by_order(vector, hook)
        edited = self.where.apply(activation, activation + vector, hook)
        return _gated(self.when, activation, edited, hook)

    def to(self, device: torch.device | str) -> AddVector:
        """Return the same edit with its vector on `device`."""
        return replace(self, vector=self.vector.to(device))


@dataclass(frozen=True, eq=False)
class SetProjection:
    """Set the projection on a direction to a value, and leave what is orthogonal to it.

    Tokens that are not chosen stay bit-equal.

    >>> edit = SetProjection(torch.tensor([2.0, 0.0]), 5.0, Where(bos=True))
    >>> edit(torch.tensor([[[1.0, 3.0]]]), hook=Site("blocks.0.hook_resid_pre")).tolist()
    [[[5.0, 3.0]]]
    """

    direction: Float[Tensor, " d"]
    """The direction; its length does not matter."""

    value: float = 0.0
    """What the projection on the unit direction becomes: 0 removes it, a mean is mean ablation."""

    where: Where = field(default_factory=Where)
    """The tokens it is done to."""

    when: Gate | None = None
    """Only rows this gate lets through; None takes all."""

    def __call__(
        self, activation: Float[Tensor, "batch pos *rest"], hook: Site
    ) -> Float[Tensor, "batch pos *rest"]:
        """Return the edited activation, computed in float32 or better, in its own dtype.

        Raises:
            HookError: the activation has another width, or its tokens are not known.
        """
        if activation.shape[-1] != len(self.direction):
            raise HookError(
                f"{hook.name!r} has {activation.shape[-1]} features, the direction"
                f" {len(self.direction)}."
            )
        x = activation.to(torch.promote_types(activation.dtype, torch.float32))
        unit = self.direction.to(x.device, torch.float64)
        unit = (unit / unit.norm()).to(x.dtype)
        moved = (x + (self.value - x @ unit)[..., None] * unit).to(activation.dtype)
        edited = self.where.apply(activation, moved, hook)
        return _gated(self.when, activation, edited, hook)

    def to(self, device: torch.device | str) -> SetProjection:
        """Return the same edit with its direction on `device`."""
        return replace(self, direction=self.direction.to(device))


def _by_order(vector: Tensor, hook: Site) -> Tensor:
    """Row i of `vector` at the i-th real token of each row of the batch, zero behind its last."""
    order = getattr(hook, "order", None)
    if order is None:
        raise HookError(
            f"a vector with its own row per token at {hook.name!r} needs applied(...), which counts"
            " tokens."
        )
    inside = (order >= 0) & (order < len(vector))
    return vector[order.clamp(0, len(vector) - 1)] * inside[..., None]


def _gated(gate: Gate | None, activation: Tensor, edited: Tensor, hook: Site) -> Tensor:
    if gate is None:
        return edited
    let_through = gate.open(hook).to(activation.device)
    return torch.where(let_through.reshape(-1, *[1] * (activation.dim() - 1)), edited, activation)
