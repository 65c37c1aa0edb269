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

from mechinterp_toolkit.analyses.number_helix.tasks import NumberTask
from mechinterp_toolkit.geometry.helix import Period, helix_basis, period_scan, period_text
from mechinterp_toolkit.geometry.neurons import fit_neurons
from mechinterp_toolkit.geometry.regression import folds, k_fold, span, without
from mechinterp_toolkit.heads.weights import output_weights
from mechinterp_toolkit.intervention import Edit, Site, applied
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
    """
    run = _Run(model, task, periods, pairs, seed)
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    of_heads = [[run.head(layer, head) for head in heads] for layer in layers]
    of_mlps = [run.mlp(layer) for layer in layers]
    total = torch.stack([torch.stack([one.total for one in row], 1) for row in of_heads], 1)
    direct = torch.tensor([[float(one.direct.mean()) for one in row] for row in of_heads])
    fitted = torch.tensor(
        [
            [[float(one.fitted[i].mean()) for one in row] for row in of_heads]
            for i in range(len(FITS))
        ]
    )
    common: dict[str, Any] = {"unit_name": "pairs of prompts", "measured": "logits", "seed": seed}
    of_all = bootstrap(total, axes=("layer", "head"), **common)
    neurons = [
        fit_neurons(run.read[f"blocks.{layer}.mlp.hook_pre"], run.a, run.b, periods)
        for layer in layers
    ]
    return Clock(
        fits=_fits(run, draws, seed),
        heads=of_all,
        heads_direct=direct.double(),
        heads_fitted=fitted.double(),
        head_types=_types(of_all, direct.double(), fitted.double()),
        mlps=bootstrap(torch.stack([one.total for one in of_mlps], 1), axes=("layer",), **common),
        mlps_direct=torch.tensor([float(one.direct.mean()) for one in of_mlps]).double(),
        mlps_fitted=torch.tensor(
            [[float(one.fitted[i].mean()) for one in of_mlps] for i in range(len(FITS))]
        ).double(),
        neuron_r2=torch.stack([one.r2.median() for one in neurons]),
        neuron_families=torch.stack([one.family.mean(1) for one in neurons], 1),
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
    """
    share = direct / total
    carries = min(1.0, 1 - share) * min(1.0, operands / both)
    brings = min(1.0, share) * min(1.0, sum_ / both)
    return carries, brings


class _Effects(NamedTuple):
    total: Float[Tensor, " pair"]
    direct: Float[Tensor, " pair"]
    fitted: tuple[Float[Tensor, " pair"], ...]


class _Run:
    """All prompts of the task read at the last token, and pairs of them between which outputs are
    exchanged."""

    def __init__(
        self, model: HookedModel, task: NumberTask, periods: Sequence[Period], pairs: int, seed: int
    ) -> None:
        assert task.second is not None
        self.model, self.task, self.a, self.b = model, task, task.number, task.second
        layers = range(model.cfg.n_layers)
        points = ("attn.hook_z", "hook_mlp_out", "mlp.hook_pre", "hook_resid_post")
        names = tuple(f"blocks.{layer}.{point}" for layer in layers for point in points)
        self.read = activations(
            model,
            task.prompts.tokens,
            names,
            mask=task.prompts.mask,
            position=task.prompts.position,
        )
        basis = [helix_basis(n, periods) for n in (self.a, self.b, self.a + self.b)]
        self.designs = (torch.cat(basis[:2], 1), basis[2], torch.cat(basis, 1))
        self.last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        answer = task.answers.gather(1, task.which[:, None])[:, 0]
        self.clean, self.corrupt = _pairs(self.a, self.b, answer, pairs, seed)
        self.right = answer[self.clean]
        self.base = self._score({})

    def head(self, layer: int, head: int) -> _Effects:
        """Effects of one head."""
        name = f"blocks.{layer}.attn.hook_z"
        z = self.read[name][:, head].double()
        output = output_weights(self.model)[layer, head].cpu().double()

        def put(activation: Tensor, at: Tensor, value: Tensor) -> None:
            activation[at[0], at[1], head] = value

        return self._effects(name, z, lambda change: change @ output, put)

    def mlp(self, layer: int) -> _Effects:
        """Effects of one MLP."""
        name = f"blocks.{layer}.hook_mlp_out"

        def put(activation: Tensor, at: Tensor, value: Tensor) -> None:
            activation[at[0], at[1]] = value

        return self._effects(name, self.read[name].double(), lambda change: change, put)

    def neurons(self) -> Float[Tensor, "layer neuron"]:
        """Direct effect of every neuron: its change times what a unit of it does at the end of the
        stream."""
        model, prompts = self.model, self.task.prompts
        names = tuple(f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers))
        clean, corrupt = (
            activations(model, part.tokens, names, mask=part.mask, position=part.position)
            for part in (prompts.select(self.clean), prompts.select(self.corrupt))
        )
        toward, output = self._gradient(), model.model.W_out.detach().cpu().double()
        change = torch.stack(
            [(clean[name] - corrupt[name]).double() for name in names]
        )  # layer pair neuron
        return (change * torch.einsum("pd,lnd->lpn", toward, output)).mean(1)

    def _gradient(self) -> Float[Tensor, "pair d_model"]:
        """Gradient of the score of each corrupt prompt along the end of the stream at its last
        token."""
        unembed = self.model.model.W_U.detach()
        wanted = unembed[:, self.right] - unembed[:, self.task.candidates].mean(1, keepdim=True)
        end = self.read[self.last][self.corrupt].clone().requires_grad_()
        with torch.enable_grad():
            score = (self.model.layer_norm("final", end) * wanted.T).sum()
        return torch.autograd.grad(score, end)[0].double().cpu()

    def _effects(
        self, name: str, values: Float[Tensor, "prompt k"], written: Any, put: Any
    ) -> _Effects:
        fitted = [values - without(values, span(design)) for design in self.designs]
        total = self._score({name: self._exchange(values[self.clean], put)})
        change = written(values[self.clean] - values[self.corrupt])
        end = self.read[self.last][self.corrupt].double() + change
        direct = self._score({self.last: self._exchange(end, _whole)})
        parts = tuple(
            self._score({name: self._exchange(one[self.clean], put)}) - self.base for one in fitted
        )
        return _Effects(total - self.base, direct - self.base, parts)

    def _exchange(self, value: Float[Tensor, "pair k"], put: Any) -> Edit:
        at = torch.stack(
            [torch.arange(len(self.corrupt)), self.task.prompts.position[self.corrupt]]
        )

        def edit(activation: Tensor, hook: Site) -> Tensor:
            changed = activation.clone()
            put(changed, at, value.to(activation))
            return changed

        return edit

    def _score(self, edits: dict[str, Edit]) -> Float[Tensor, " pair"]:
        """Logit of the clean pair's answer in the corrupt prompt, centred over all numbers."""
        prompts = self.task.prompts.select(self.corrupt)
        with applied(self.model, edits, mask=prompts.mask):
            logits = self.model.logits(prompts.tokens, prompts.mask)
        there = logits[torch.arange(len(prompts)), prompts.position].detach().cpu().double()
        return there.gather(1, self.right[:, None])[:, 0] - there[:, self.task.candidates].mean(1)


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


def _whole(activation: Tensor, at: Tensor, value: Tensor) -> None:
    activation[at[0], at[1]] = value


def _fits(run: _Run, draws: int, seed: int) -> Estimate:
    """R2 of the stream behind each block on held-out pairs, by design; controls permute which pair
    belongs to which row."""
    generator = torch.Generator().manual_seed(seed)
    n = len(run.a)
    fold = folds(n, generator)
    orders = [torch.randperm(n, generator=generator) for _ in range(draws)]
    total = (run.a + run.b).unique(return_inverse=True)[1]
    rows = []
    for design in run.designs:
        of_blocks = []
        for layer in range(run.model.cfg.n_layers):
            x = run.read[f"blocks.{layer}.hook_resid_post"].double()
            errors = _held_out(x, design, fold)
            null = torch.stack([_r2(_held_out(x, design[order], fold)) for order in orders])
            of_blocks.append(
                bootstrap(
                    errors,
                    unit=total,
                    unit_name="sums",
                    measured="R2, at most 1",
                    seed=seed,
                    control=null,
                    control_name="pairs permuted",
                    statistic=lambda v, w: 1 - (w @ v[:, 0]) / (w @ v[:, 1]),
                )
            )
        rows.append(along(of_blocks, "block"))
    return along(rows, "fit", FITS)


def _held_out(x: Tensor, design: Tensor, fold: Tensor) -> Float[Tensor, "pair 2"]:
    """Squared error of each held-out pair, and its squared distance from the others' mean."""
    mean = torch.ones(len(x), 1, dtype=torch.float64)
    return torch.stack([(x - k_fold(d, fold)(x)).square().sum(1) for d in (design, mean)], 1)


def _r2(errors: Float[Tensor, "pair 2"]) -> Float[Tensor, ""]:
    return 1 - errors[:, 0].sum() / errors[:, 1].sum()


def _types(
    effect: Estimate, direct: Float[Tensor, "layer head"], fitted: Float[Tensor, "fit layer head"]
) -> tuple[tuple[str, str], ...]:
    total, types = effect.value, []
    for flat in total.flatten().argsort(descending=True).tolist():
        layer, head = divmod(flat, total.shape[1])
        operands, sum_, both = fitted[:, layer, head].tolist()
        acts = total[layer, head] > SMALLEST_SHARE * total.max() and effect.low[layer, head] > 0
        if not acts or not both > 0:
            continue
        carries, brings = classify_head(
            float(total[layer, head]), float(direct[layer, head]), operands, sum_, both
        )
        mixed = max(carries, brings) < 0.5
        types.append(
            (f"{layer}.{head}", "mixed" if mixed else "a, b" if carries > brings else "a + b")
        )
    return tuple(types)


def _sum_periods(run: _Run, layer: int, parts: Sequence[Period], seed: int) -> str:
    x, total = run.read[f"blocks.{layer}.hook_resid_post"], run.a + run.b
    half = int(total.max() - total.min()) // 2
    looked_for = sorted({*range(2, half + 1), *(part for part in parts if part <= half)})
    found = period_scan(x, total, periods=looked_for, draws=199, seed=seed).found
    return ", ".join(map(period_text, found)) or "none"
