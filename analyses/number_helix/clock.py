"""How does a model that adds get from a and b to a + b: which heads carry the operands, which MLPs
build the sum and read it?

At the last token of "a + b =": what is there of a helix of a, of b and of a + b, block by block;
for each head and MLP its total effect (its output there replaced by that of a pair with one other
operand), its direct effect (the same change brought to the end of the stream alone), and the total
effect of its output as *fitted* by helices of the operands, of the sum, and of both. Heads whose
effect is indirect and fits the operands carry a and b, heads whose effect is direct and fits the
sum bring the answer out. Pre-activations of neurons are fitted by waves in closed form, and each
neuron has its direct effect.

What would fool it: helices of the operands explain much of a sum's helix on few pairs, so R2 is on
held-out pairs. Damage: a head's output replaced by something average takes the other pair's answer
away, and half of the difference between two answers with it, so an effect is the rise of the new
answer over the mean of all numbers, which damage does not give. Were both operands exchanged at
once, no single head could bring the new answer: pairs share one operand. Head types are words for
two ratios, which stand beside them.

Source: Kantamneni and Tegmark 2025, arXiv:2502.00873 (fits, total and direct effects, head
confidences); Nanda et al. 2023, arXiv:2301.05217 (Clock).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.analyses._exchanges import at_positions
from mechinterp_toolkit.analyses.number_helix.tasks import NumberTask
from mechinterp_toolkit.geometry.helix import Period, helix_basis, period_scan, period_text
from mechinterp_toolkit.geometry.neurons import fit_neurons
from mechinterp_toolkit.geometry.regression import folds, k_fold, span, without
from mechinterp_toolkit.heads.weights import (
    final_norm,
    head_weights,
    neuron_outputs,
    unembedding,
    why_no_heads,
    why_no_neurons,
    why_not_direct,
)
from mechinterp_toolkit.intervention import Edit, applied
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.results import Estimate, along
from mechinterp_toolkit.stats import bootstrap

FITS = ("operands", "sum", "both")
"""Helices of a and b; of a + b; of all three."""

SMALLEST_SHARE = 0.05
"""Heads and MLPs with less than this share of the largest total effect, or an interval that reaches
zero, count as none."""


@dataclass(frozen=True)
class Clock:
    """Result of `read_clock`."""

    fits: Estimate
    """R2 on held-out pairs of the stream at the last token behind each block, by `FITS`, [fit,
    block], at most 1; control: pairs permuted."""

    heads: Estimate
    """Total effect of each head at the last token, [layer head], in logits of the new answer,
    centred over numbers."""

    heads_direct: Float[Tensor, "layer head"]
    """Its direct effect, in logits."""

    heads_fitted: Float[Tensor, "fit layer head"]
    """Total effect of the head's output as fitted by each of `FITS`, in logits."""

    head_types: tuple[tuple[str, str], ...]
    """(layer.head, type) of heads with an effect, largest first: "a, b", "a + b" or "mixed"."""

    mlps: Estimate
    """Total effect of each MLP at the last token, [layer], in logits."""

    mlps_direct: Float[Tensor, " layer"]
    """Its direct effect, in logits."""

    mlps_fitted: Float[Tensor, "fit layer"]
    """Total effect of the MLP's output as fitted by each of `FITS`, in logits."""

    neuron_r2: Float[Tensor, " layer"]
    """Median over neurons of the R2 of waves of a, b and a + b, pairs held out, at most 1."""

    neuron_families: Float[Tensor, "family layer"]
    """Mean over neurons of the R2 lost without the waves of a, b, a + b (`neurons.FAMILIES`), in
    [0, 1]."""

    neuron_direct: Float[Tensor, "layer neuron"]
    """Direct effect of each neuron at the last token, in logits, to first order in the final
    LayerNorm."""

    sum_periods: tuple[str, ...]
    """Block by block, the periods with which the unreduced sum a + b is represented at the last
    token, as words."""

    @property
    def builders(self) -> tuple[int, ...]:
        """Layers whose MLP acts on the answer through later layers (direct effect below half of the
        total)."""
        return tuple(
            i for i in self._acting if float(self.mlps_direct[i]) < 0.5 * float(self.mlps.value[i])
        )

    @property
    def readers(self) -> tuple[int, ...]:
        """Layers whose MLP acts on the answer directly."""
        return tuple(i for i in self._acting if i not in self.builders)

    def neurons_for(self, share: float) -> tuple[tuple[int, int], ...]:
        """Return the fewest (layer, neuron), largest first, whose direct effects come to `share` of
        those of all.

        Empty where the neurons together do not raise the answer.
        """
        effect, order = self.neuron_direct.flatten().sort(descending=True)
        if float(effect.sum()) <= 0:
            return ()
        needed = int((effect.cumsum(0) < share * effect.sum()).sum()) + 1
        width = self.neuron_direct.shape[1]
        return tuple((i // width, i % width) for i in order[:needed].tolist())

    @property
    def _acting(self) -> list[int]:
        value, low = self.mlps.value.tolist(), self.mlps.low.tolist()
        return [i for i, v in enumerate(value) if v > SMALLEST_SHARE * max(value) and low[i] > 0]


def why_no_clock(model: HookedModel) -> str | None:
    """Return why the parts of this model cannot be told apart, or None.

    >>> from mechinterp_toolkit.model import load_model
    >>> why_no_clock(load_model("toy/ordinal")) is None
    True
    """
    return why_no_heads(model) or why_no_neurons(model) or why_not_direct(model)


def read_clock(
    model: HookedModel,
    task: NumberTask,
    periods: Sequence[Period],
    *,
    sum_periods: Sequence[Period] = (),
    pairs: int = 64,
    draws: int = 19,
    seed: int = 0,
) -> Clock:
    """Take the addition apart at the last token.

    Args:
        model: one that adds.
        task: an addition.
        periods: of the helices.
        sum_periods: periods that are looked for in the sum besides whole numbers: parts of a
            modulus.
        pairs: pairs of prompts between which outputs are exchanged.
        draws: permutations of the pairs behind the fits' control.
        seed: of everything drawn.

    >>> from mechinterp_toolkit.analyses.number_helix.tasks import addition_task, number_tokens
    >>> from mechinterp_toolkit.model import load_model
    >>> model = load_model("toy/addition-mod")
    >>> task = addition_task(model, number_tokens(model, 58), modulus=59, repeats=2)
    >>> with torch.no_grad():
    ...     read_clock(model, task, (59 / 12, 59 / 19), draws=2, pairs=8).readers
    (0,)
    """
    run = _Run(model, task, periods, pairs, seed)
    layers, shape = range(model.cfg.n_layers), (model.cfg.n_layers, model.cfg.n_heads)
    by_head = [run.head(layer, head) for layer in layers for head in range(shape[1])]
    by_mlp = [run.mlp(layer) for layer in layers]
    common: dict[str, Any] = {"unit_name": "pairs of prompts", "measured": "logits", "seed": seed}
    total = torch.stack([effects.total for effects in by_head], 1).unflatten(1, shape)
    heads = bootstrap(total, axes=("layer", "head"), **common)
    direct = torch.stack([effects.direct.mean() for effects in by_head]).reshape(shape)
    fitted = torch.stack([effects.fitted.mean(1) for effects in by_head], 1).unflatten(1, shape)
    mlps = torch.stack([effects.total for effects in by_mlp], 1)
    neurons = [
        fit_neurons(run.read[f"blocks.{layer}.mlp.hook_pre"], run.a, run.b, periods)
        for layer in layers
    ]
    return Clock(
        fits=_fits(run, draws, seed),
        heads=heads,
        heads_direct=direct,
        heads_fitted=fitted,
        head_types=_types(heads, direct, fitted),
        mlps=bootstrap(mlps, axes=("layer",), **common),
        mlps_direct=torch.stack([effects.direct.mean() for effects in by_mlp]),
        mlps_fitted=torch.stack([effects.fitted.mean(1) for effects in by_mlp], 1),
        neuron_r2=torch.stack([fits.r2.median() for fits in neurons]),
        neuron_families=torch.stack([fits.family.mean(1) for fits in neurons], 1),
        neuron_direct=run.neurons(),
        sum_periods=tuple(_sum_periods(run, layer, sum_periods, seed) for layer in layers),
    )


def classify_head(
    total: float, direct: float, operands: float, sum_: float, both: float
) -> tuple[float, float]:
    """Return how far a head is one that carries a and b, and one that brings out a + b, each at
    most 1.

    Args:
        total, direct: its total and direct effect.
        operands, sum_, both: total effect of its output as fitted by helices of the operands, of
            the sum, of all.

    >>> classify_head(total=2.0, direct=0.5, operands=2.0, sum_=0.5, both=2.0)
    (0.75, 0.0625)
    """
    share = direct / total
    carries = min(1.0, 1 - share) * min(1.0, operands / both)
    brings = min(1.0, share) * min(1.0, sum_ / both)
    return carries, brings


class _Effects(NamedTuple):
    total: Float[Tensor, " pair"]
    direct: Float[Tensor, " pair"]
    fitted: Float[Tensor, "fit pair"]


class _Run:
    """The prompts read at the last token, and pairs between which outputs are exchanged."""

    def __init__(
        self, model: HookedModel, task: NumberTask, periods: Sequence[Period], pairs: int, seed: int
    ) -> None:
        assert task.second is not None
        prompts, layers = task.prompts, range(model.cfg.n_layers)
        self.model, self.task, self.a, self.b = model, task, task.number, task.second
        points = ("attn.hook_z", "hook_mlp_out", "mlp.hook_pre", "mlp.hook_post", "hook_resid_post")
        names = tuple(f"blocks.{layer}.{point}" for layer in layers for point in points)
        self.read = activations(
            model, prompts.tokens, names, mask=prompts.mask, position=prompts.position
        )
        basis = [helix_basis(n, periods) for n in (self.a, self.b, self.a + self.b)]
        designs = (torch.cat(basis[:2], 1), basis[2], torch.cat(basis, 1))
        self.designs = dict(zip(FITS, designs, strict=True))
        self.last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        answer = task.answers.gather(1, task.which[:, None])[:, 0]
        self.clean, self.corrupt = _pairs(self.a, self.b, answer, pairs, seed)
        self.prompts, self.right = prompts.select(self.corrupt), answer[self.clean]
        self.base = self.score({})

    def head(self, layer: int, head: int) -> _Effects:
        """Effects of one head."""
        output = head_weights(self.model, layer).output[head].cpu().double()
        return self._effects(f"blocks.{layer}.attn.hook_z", output, head)

    def mlp(self, layer: int) -> _Effects:
        """Effects of one MLP."""
        return self._effects(f"blocks.{layer}.hook_mlp_out")

    def neurons(self) -> Float[Tensor, "layer neuron"]:
        """Direct effect of every neuron: its change times what a unit of it does at the end of the
        stream."""
        layers = range(self.model.cfg.n_layers)
        values = torch.stack([self.read[f"blocks.{layer}.mlp.hook_post"] for layer in layers])
        change = (values[:, self.clean] - values[:, self.corrupt]).double()  # layer pair neuron
        output = torch.stack([neuron_outputs(self.model, layer) for layer in layers])
        return (change * torch.einsum("pd,lnd->lpn", self._gradient(), output.cpu().double())).mean(
            1
        )

    def score(self, edits: dict[str, Edit]) -> Float[Tensor, " pair"]:
        """Logit of the clean pair's answer in the corrupt prompt, centred over all numbers."""
        with applied(self.model, edits, mask=self.prompts.mask):
            logits = self.model.logits(self.prompts.tokens, self.prompts.mask)
        there = self.prompts.where_asked(logits)
        return there.gather(1, self.right[:, None])[:, 0] - there[:, self.task.candidates].mean(1)

    def _gradient(self) -> Float[Tensor, "pair d_model"]:
        """Gradient of the score of each corrupt prompt along the end of the stream at its last
        token."""
        norm, unembed = final_norm(self.model), unembedding(self.model)
        end = self.read[self.last][self.corrupt].clone().requires_grad_()
        with torch.enable_grad():
            logits = unembed(norm(end))
            score = logits.gather(1, self.right[:, None]).sum()
            score = score - logits[:, self.task.candidates].mean(1).sum()
        return torch.autograd.grad(score, end)[0].double().cpu()

    def _effects(
        self, name: str, output: Tensor | None = None, head: int | None = None
    ) -> _Effects:
        """Effects of an output: all of a hook point's, or one head's, which `output` brings to the
        stream."""
        values = self.read[name].double()
        values = values if head is None else values[:, head]
        change = values[self.clean] - values[self.corrupt]
        end = self.read[self.last][self.corrupt].double()
        end = end + (change if output is None else change @ output)

        def put(values: Float[Tensor, "prompt k"]) -> Float[Tensor, " pair"]:
            return self.score({name: self._set(values[self.clean], head)}) - self.base

        fitted = [values - without(values, span(design)) for design in self.designs.values()]
        direct = self.score({self.last: self._set(end)}) - self.base
        return _Effects(put(values), direct, torch.stack([put(part) for part in fitted]))

    def _set(self, value: Float[Tensor, "pair k"], head: int | None = None) -> Edit:
        def change(rows: Tensor) -> Tensor:
            if head is None:
                return value
            return rows.index_copy(1, torch.tensor([head]), value[:, None])

        return at_positions(self.prompts.position, change)


def _pairs(a: Tensor, b: Tensor, answer: Tensor, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of prompts that share one operand, b and a in turn, and differ in the other one and the
    answer.

    Were both to differ, one head's output brought over would give a third sum, and every effect
    would be damage.
    """
    generator = torch.Generator().manual_seed(seed)
    clean: list[int] = []
    corrupt: list[int] = []
    for i in torch.randperm(len(a), generator=generator).tolist():
        shared = b if len(clean) % 2 == 0 else a
        others = ((shared == shared[i]) & (answer != answer[i])).nonzero().flatten()
        if len(others):
            clean.append(i)
            corrupt.append(int(others[torch.randint(len(others), (1,), generator=generator)]))
        if len(clean) == pairs:
            break
    return torch.tensor(clean), torch.tensor(corrupt)


def _fits(run: _Run, draws: int, seed: int) -> Estimate:
    """R2 of the stream behind each block on held-out pairs, by design; control: pairs permuted."""
    generator = torch.Generator().manual_seed(seed)
    n = len(run.a)
    fold = folds(n, generator)
    orders = [torch.randperm(n, generator=generator) for _ in range(draws)]
    total = (run.a + run.b).unique(return_inverse=True)[1]
    rows = []
    for design in run.designs.values():
        blocks = []
        for layer in range(run.model.cfg.n_layers):
            acts = run.read[f"blocks.{layer}.hook_resid_post"].double()
            null = [_held_out(acts, design[order], fold).sum(0) for order in orders]
            blocks.append(
                bootstrap(
                    _held_out(acts, design, fold),
                    unit=total,
                    unit_name="sums",
                    measured="R2, at most 1",
                    seed=seed,
                    control=torch.stack([1 - missed / whole for missed, whole in null]),
                    control_name="pairs permuted",
                    statistic=lambda v, w: 1 - (w @ v[:, 0]) / (w @ v[:, 1]),
                )
            )
        rows.append(along(blocks, "block"))
    return along(rows, "fit", FITS)


def _held_out(
    acts: Float[Tensor, "pair d"], design: Float[Tensor, "pair column"], fold: Tensor
) -> Float[Tensor, "pair 2"]:
    """Squared error of each held-out pair, and its squared distance from the others' mean."""
    mean = torch.ones(len(acts), 1, dtype=torch.float64)
    predicted = [k_fold(columns, fold)(acts) for columns in (design, mean)]
    return torch.stack([(acts - part).square().sum(1) for part in predicted], 1)


def _types(
    effect: Estimate, direct: Float[Tensor, "layer head"], fitted: Float[Tensor, "fit layer head"]
) -> tuple[tuple[str, str], ...]:
    total, types = effect.value, []
    acts = (total > SMALLEST_SHARE * total.max()) & (effect.low > 0) & (fitted[-1] > 0)
    for flat in total.flatten().argsort(descending=True).tolist():
        layer, head = divmod(flat, total.shape[1])
        if not acts[layer, head]:
            continue
        operands, sum_, both = fitted[:, layer, head].tolist()
        effects = float(total[layer, head]), float(direct[layer, head])
        carries, brings = classify_head(*effects, operands, sum_, both)
        kind = "a, b" if carries > brings else "a + b"
        types.append((f"{layer}.{head}", kind if max(carries, brings) >= 0.5 else "mixed"))
    return tuple(types)


def _sum_periods(run: _Run, layer: int, parts: Sequence[Period], seed: int) -> str:
    acts, total = run.read[f"blocks.{layer}.hook_resid_post"], run.a + run.b
    half = int(total.max() - total.min()) // 2
    looked_for = sorted({*range(2, half + 1), *(part for part in parts if part <= half)})
    scan = period_scan(acts, total, periods=looked_for, draws=199, seed=seed)
    return ", ".join(map(period_text, scan.found)) or "none"
