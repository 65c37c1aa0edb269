"""Which activations carry the difference between two prompts? Move them into the other run.

`patch_effects` puts activations of a source prompt (clean) into the run of a base prompt
(corrupted), one place at a time: whole, by head, by token, or only along one direction.
`path_effects` moves what heads write along the direct paths to some receivers only, everything
between held fixed. Effects are normalised: 0 is the base prompt's metric, 1 the source's.

What would fool it: prompts that don't line up token by token; a metric on which the two prompts
hardly differ, so that the normalised effect means nothing, which is refused; the zeros of a path
that does not exist, which are refused too.

Source: Wang et al. 2023, arXiv:2211.00593 (path patching); Tigges et al. 2023, arXiv:2310.15154
(directional patching); Heimersheim & Nanda 2024, arXiv:2404.15255 (which run goes into which).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import HookError, ToolkitError
from mechinterp_toolkit.hooks.ablate import AblateHeads, Component
from mechinterp_toolkit.hooks.measure import Metric, measure
from mechinterp_toolkit.hooks.where import EVERYTHING, Where
from mechinterp_toolkit.intervention import Edit, Site
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Prompts that differ in something, pair by pair, each pair of the same length."""

    source: Int[Tensor, "pair pos"]
    """Activations are taken from these (clean, where patching restores the answer)."""

    base: Int[Tensor, "pair pos"]
    """These are run and edited (corrupted)."""

    unit: Int[Tensor, " pair"] | None = None
    """Which exchangeable unit each pair belongs to (a pair of words in several sentences, say).

    Intervals, and the test that the metric differs, go by units. None: each pair is its own."""

    unit_name: str = "pairs of prompts"
    """What a unit is, in the plural."""

    def __post_init__(self) -> None:
        if self.unit is not None and len(self.unit) != len(self.base):
            raise ToolkitError(
                f"got units for {len(self.unit)} of {len(self.base)} pairs of prompts; give each"
                " pair its own."
            )


@dataclass(frozen=True, eq=False)
class Place:
    """What is moved: a hook point, or some heads or tokens of it, or one direction."""

    hook_point: str
    """Hook name, as `HookedTransformer` spells it."""

    heads: tuple[int, ...] | None = None
    """These heads alone, of an activation [batch pos head d_head]; None takes all of it."""

    positions: tuple[int, ...] | Int[Tensor, "batch chosen"] | None = None
    """These tokens alone, see `Where.positions`; None takes all."""

    direction: Float[Tensor, " d"] | None = None
    """Only the component along this direction; None takes everything."""

    name: str = ""
    """What it is called in results; empty makes a name of the other fields."""

    @property
    def label(self) -> str:
        """The name, or one made of hook point, heads and positions."""
        tokens = "tokens of each row" if isinstance(self.positions, Tensor) else self.positions
        parts = [self.hook_point] + [
            chosen if isinstance(chosen, str) else f"{what} {','.join(map(str, chosen))}"
            for what, chosen in (("head", self.heads), ("token", tokens))
            if chosen is not None
        ]
        return self.name or " ".join(parts + (["direction"] if self.direction is not None else []))

    def patch(self, source: Float[Tensor, "batch pos *rest"]) -> PatchActivation:
        """Return the edit that moves this much of `source`, the activation of another run."""
        where = EVERYTHING if self.positions is None else Where(positions=self.positions, bos=True)
        return PatchActivation(source, self.heads, self.direction, where)


@dataclass(frozen=True, eq=False)
class PatchActivation:
    """Replace an activation, or a part of it, by what it was in another run of as many tokens.

    >>> source, base = torch.tensor([[[5.0, 7.0]]]), torch.tensor([[[1.0, 2.0]]])
    >>> edit = PatchActivation(source, direction=torch.tensor([3.0, 0.0]))
    >>> edit(base, hook=Site("blocks.0.hook_resid_pre")).tolist()
    [[[5.0, 2.0]]]
    """

    source: Float[Tensor, "batch pos *rest"]
    """The activation of the other run, row by row and token by token."""

    heads: tuple[int, ...] | None = None
    """These heads alone; None replaces all."""

    direction: Float[Tensor, " d"] | None = None
    """Only the component along this direction; None replaces everything."""

    where: Where = EVERYTHING
    """The tokens at which it is replaced."""

    def __call__(
        self, activation: Float[Tensor, "batch pos *rest"], hook: Site
    ) -> Float[Tensor, "batch pos *rest"]:
        """Return the edited activation.

        Raises:
            HookError: the two runs don't line up, or a head is not there.
        """
        if self.source.shape != activation.shape:
            raise HookError(
                f"{hook.name!r} has shape {tuple(activation.shape)} here and"
                f" {tuple(self.source.shape)} in the run it is patched from; run prompts of one"
                " length, one source row per base row, without a KV cache."
            )
        edited = self.source.to(activation)
        if self.direction is not None:
            unit = self.direction.to(activation.device, torch.float64)
            unit = (unit / unit.norm()).to(activation.dtype)
            edited = activation + ((edited - activation) @ unit)[..., None] * unit
        if self.heads is not None:
            edited = _only_heads(activation, edited, self.heads, hook)
        return self.where.apply(activation, edited, hook)


@dataclass(frozen=True)
class PatchEffects:
    """What moving activations from the source prompts into the base prompts does."""

    normalised: Estimate
    """By place: (patched - base) / (source - base) of the metric's means; 0 does nothing, 1 is the
    source's answer."""

    raw: Estimate
    """By place: mean of patched - base, in the unit of the metric."""

    gap: Estimate
    """Mean of source - base, what `normalised` is divided by."""


@takes_model
def patch_effects(
    model: HookedModel,
    pairs: PromptPairs,
    places: Sequence[Place],
    metric: Metric,
    *,
    measured: str = "logits",
    seed: int = 0,
) -> PatchEffects:
    """Move each place's activation from the source run into the base run, one place at a time.

    Args:
        pairs: the prompts.
        places: what is moved.
        metric: one number per prompt, for source and base alike: the source prompts' right answers
            minus wrong ones.
        measured: unit of the metric.
        seed: of the intervals.

    Raises:
        ToolkitError: fewer than two units, or prompts on which the metric hardly differs.
        HookError: an unknown hook point, or places that don't fit their activation.

    >>> source = torch.tensor([[1, 67, 107, 108, 25], [1, 67, 107, 108, 26]])  # ... looks nice, fun
    >>> base = torch.tensor([[1, 67, 107, 108, 34], [1, 67, 107, 108, 49]])  # ... stupid, foolish
    >>> effects = patch_effects(
    ...     "toy/sentiment",
    ...     PromptPairs(source, base),
    ...     [Place("blocks.0.hook_resid_pre", positions=(at,)) for at in (3, 4)],
    ...     lambda logits: logits[:, -1, 60] - logits[:, -1, 59],
    ... )
    >>> effects.normalised.value.round().int().tolist()  # they differ in the last token alone
    [0, 1]
    """
    _check_places(places)
    recorded = activations(model, pairs.source, _hook_points(places))
    patched = {}
    for place in places:
        edit = place.patch(recorded[place.hook_point])
        patched[place.label] = measure(model, pairs.base, metric, {place.hook_point: edit})
    return _effects(model, pairs, metric, patched, measured, seed)


@takes_model
def path_effects(
    model: HookedModel,
    pairs: PromptPairs,
    senders: Sequence[Component],
    receivers: Sequence[Place],
    metric: Metric,
    *,
    freeze_mlps: bool = False,
    measured: str = "logits",
    seed: int = 0,
) -> PatchEffects:
    """Move what each head writes from the source run along its direct paths to the receivers.

    One head at a time. The base prompt is run with the sender from the source run and every other
    head as it was in the base run; what the receivers then hold is put into a plain base run. MLPs
    between pass on what they see, or are held fixed too.

    Args:
        pairs, metric, measured, seed: as for `patch_effects`.
        senders: `(layer, head)`, one path effect each.
        receivers: where paths end: `blocks.L.attn.hook_q`, `hook_k`, `hook_v` of some heads, or the
            last `hook_resid_post` for the direct effect on the logits. All of them together.
        freeze_mlps: hold MLPs fixed between sender and receivers.

    Raises:
        ToolkitError: as `patch_effects`.
        HookError: as `patch_effects`; also a sender from which no path leads to any receiver.

    >>> source = torch.tensor([[1, 67, 107, 108, 25], [1, 67, 107, 108, 26]])  # ... looks nice, fun
    >>> base = torch.tensor([[1, 67, 107, 108, 34], [1, 67, 107, 108, 49]])  # ... stupid, foolish
    >>> metric = lambda logits: logits[:, -1, 60] - logits[:, -1, 59]
    >>> asked = PromptPairs(source, base), [(0, 1)], [Place("blocks.1.hook_resid_post")], metric
    >>> path_effects("toy/sentiment", *asked).raw.labels
    {'place': ('0.1',)}
    """
    _check_places(receivers)
    heads = {layer: f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)}
    mlps = [f"blocks.{layer}.hook_mlp_out" for layer in heads] if freeze_mlps else []
    frozen, ends = [*heads.values(), *mlps], _hook_points(receivers)
    of_base = activations(model, pairs.base, tuple(dict.fromkeys([*frozen, *ends])))
    sending = tuple(dict.fromkeys(heads[layer] for layer, _ in senders))
    of_source = activations(model, pairs.source, sending)
    patched = {}
    for layer, head in senders:
        name = heads[layer]
        _check_head(head, of_base[name], name)
        held: dict[str, list[Edit]] = {at: [PatchActivation(of_base[at])] for at in frozen}
        held[name].append(AblateHeads((head,), of_source[name][:, :, [head]]))
        arrived = activations(model, pairs.base, ends, edits=held)
        if all(torch.equal(arrived[at], of_base[at]) for at in ends):
            raise HookError(
                f"no direct path leads from head {layer}.{head} to {', '.join(ends)}; receivers lie"
                " behind it."
            )
        edits: dict[str, list[Edit]] = {at: [] for at in ends}
        for place in receivers:
            edits[place.hook_point].append(place.patch(arrived[place.hook_point]))
        patched[f"{layer}.{head}"] = measure(model, pairs.base, metric, edits)
    return _effects(model, pairs, metric, patched, measured, seed)


def _effects(
    model: HookedModel,
    pairs: PromptPairs,
    metric: Metric,
    patched: dict[str, Float[Tensor, " pair"]],
    measured: str,
    seed: int,
) -> PatchEffects:
    """Estimate what each place does to the metric, of which `patched` has every pair's value."""
    source, base = (measure(model, tokens, metric) for tokens in (pairs.source, pairs.base))
    gap, error = source - base, _standard_error(source - base, pairs.unit)
    if not gap.mean().abs() > 2 * error:  # it may be zero, as far as a 95 % interval tells
        raise ToolkitError(
            f"the metric of source and base prompts differs by {gap.mean():.3g} +- {error:.2g} on"
            " average; nothing can be normalised by that. Choose prompts the model answers"
            " differently, or more of them."
        )
    change = torch.stack([after - base for after in patched.values()], 1)
    estimate = partial(bootstrap, unit=pairs.unit, unit_name=pairs.unit_name, seed=seed)
    by_place = partial(estimate, axes=("place",), labels={"place": tuple(patched)})
    return PatchEffects(
        normalised=by_place(
            torch.cat([change, gap[:, None]], 1),
            measured="fraction of the gap",
            statistic=_ratio_of_means,
        ),
        raw=by_place(change, measured=measured),
        gap=estimate(gap, measured=measured),
    )


def _standard_error(
    values: Float[Tensor, " n"], unit: Int[Tensor, " pair"] | None
) -> Float[Tensor, ""]:
    """Standard error of the mean of independent units: sqrt(U / (U - 1) sum_u (sum of u)^2) / n.

    With a row each it is the usual one; of one unit it is 0, which `bootstrap` refuses.
    """
    which = torch.arange(len(values)) if unit is None else unit.cpu().unique(return_inverse=True)[1]
    n = int(which.max()) + 1
    sums = torch.zeros(n, dtype=values.dtype).index_add_(0, which, values - values.mean())
    return (sums.square().sum() * n / max(n - 1, 1)).sqrt() / len(values)


def _ratio_of_means(
    rows: Float[Tensor, "n columns"], weights: Float[Tensor, "draw n"]
) -> Float[Tensor, "draw place"]:
    sums = weights @ rows
    return sums[:, :-1] / sums[:, -1:]


def _hook_points(places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.hook_point for place in places))


def _only_heads(activation: Tensor, edited: Tensor, heads: tuple[int, ...], hook: Site) -> Tensor:
    if activation.dim() != 4:
        raise HookError(
            f"{hook.name!r} has shape {tuple(activation.shape)} and no heads; leave heads out."
        )
    chosen = torch.zeros(activation.shape[2], dtype=torch.bool, device=activation.device)
    for head in heads:
        _check_head(head, activation, hook.name)
        chosen[head] = True
    return torch.where(chosen[:, None], edited, activation)


def _check_head(head: int, activation: Tensor, name: str) -> None:
    if not 0 <= head < activation.shape[2]:
        raise HookError(
            f"{name!r} has {activation.shape[2]} heads, numbered from 0; there is no head {head}."
        )


def _check_places(places: Sequence[Place]) -> None:
    labels = [place.label for place in places]
    if not labels:
        raise ToolkitError("got no places; expected one or more.")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ToolkitError(
            f"several places are called {', '.join(twice[:5])}; give them names of their own"
            " (Place.name)."
        )
