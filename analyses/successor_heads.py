"""Which heads map an ordinal to its successor (Monday to Tuesday, 3 to 4), whatever the class?

The OV circuit of a head is read from the weights: token representation, the LayerNorm of the head's layer, W_V W_O, the
final LayerNorm, W_U. A head's score is the fraction of items whose successor gets the highest logit of its class, averaged
over classes. *Represented*: some head's score, and its score minus the same for predecessors, beat the largest over all
heads when the order of the items is shuffled, and the score is at least one half. *Used*: on prompts that ask for a
successor, replacing these heads' outputs by their mean lowers the right answer more than it lowers shuffled answers.

What would fool it: a head that suppresses what is near its input scores on successors and predecessors alike (hence the
difference); a head that copies, or that lifts a whole class, moves answers without mapping anything (hence logits centred
within the class); a model may compute successors in its MLPs, with heads that only carry items, and is then told so.

Source: Gould, Ong, Ogden, Conmy 2024, Successor Heads, arXiv:2312.09230 (the score); maximum-statistic null and the
predecessor condition are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.direct_attribution import attribute_heads
from mechinterp_toolkit.errors import TokenisationError
from mechinterp_toolkit.hooks.ablate import ablate_heads, head_means
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.ov_circuit import Candidates, Convention, Representation, best_candidates
from mechinterp_toolkit.prompts import (
    STANDARD_CLASSES,
    OrdinalClass,
    PromptSet,
    has_ordinal_tokens,
    ordinal_classes,
    succession_prompts,
)
from mechinterp_toolkit.record import activations
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Finding, Verdict
from mechinterp_toolkit.stats import bootstrap, max_statistic_p, p_value, permutations, too_few_draws

# A successor head succeeds on more than half of the items: the threshold of Gould et al. 2024.
THRESHOLD = 0.5

OFFSETS = (-1, 0, 1)

SHUFFLES = 19
"""Shuffled prompt sets behind the lift."""


@dataclass(frozen=True)
class SuccessorHeads(Finding):
    """Result of `successor_heads`."""

    classes: tuple[str, ...]
    """Names of the classes scored."""

    n_pairs: tuple[int, ...]
    """Pairs of an item and its successor in each class."""

    score: Estimate
    """Fraction of items mapped to their successor, mean over classes, [layer head], in [0, 1]."""

    difference: Estimate
    """`score` minus the same for predecessors, [layer head], in [-1, 1]."""

    p: Float[Tensor, "layer head"]
    """Larger of the adjusted p-values of `score` and `difference` (maximum over all heads)."""

    writes: Bool[Tensor, "layer head"]
    """Whether the head writes anything: one whose OV circuit is zero has no score, its zeros are not a measurement."""

    class_score: Float[Tensor, "class layer head"]
    """`score` of each class on its own, in [0, 1]."""

    profile: Float[Tensor, "offset layer head"]
    """Fraction of items mapped to predecessor, themselves, successor, mean over classes, in [0, 1]."""

    attention: Estimate | None
    """Attention from the position that answers to the item, [layer head], in [0, 1]."""

    attribution: Estimate | None
    """Direct attribution of each head to the right answer, [layer head], in logits; control: shuffled prompts."""

    lift: Estimate | None
    """`attribution` minus its mean over shuffled prompts, [layer head], in logits: a head that raises the class has none."""

    behaviour: Estimate | None
    """Fraction of prompts whose right answer has the highest logit of its class; control: answers shuffled."""

    logit_drop: Estimate | None
    """Fall of the right answer's logit, centred within its class, when the found heads are mean-ablated, in logits."""

    accuracy_drop: Estimate | None
    """Fall of `behaviour` under the same ablation, in [-1, 1]."""

    convention: str
    """Representation, LayerNorm, biases and candidates behind the score, in words."""

    notes: tuple[str, ...]
    """Items dropped, classes left out, prompts that could not be asked."""

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """`(layer, head)` of the successor heads, best score first."""
        return _heads_above(self.score.value, self.p)

    @property
    def best(self) -> tuple[int, int]:
        """`(layer, head)` of the highest score among heads that write."""
        flat = int(self.score.value.masked_fill(~self.writes, -1).argmax())
        return divmod(flat, self.score.value.shape[1])

    @property
    def represented(self) -> Verdict:
        if not self.writes.any():
            return Verdict("not_applicable", "No head writes anything: every OV circuit is zero.")
        layer, head = self.heads[0] if self.heads else self.best
        p, value, high = float(self.p[layer, head]), self._at(self.score), float(self.score.high[layer, head])
        said = f"head {layer}.{head} maps {value} of the items to their successor"
        assert self.score.control is not None
        short = too_few_draws(len(self.score.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p, smallest_effect=THRESHOLD)
        if self.heads:
            return Verdict("found", f"{said}, beyond every head of shuffled orders.", p=p, smallest_effect=THRESHOLD)
        if p <= 0.05 and high >= THRESHOLD:
            reason = f"{said}: beyond the null, but not surely at least half of them."
            return Verdict("undecided", reason, p=p, smallest_effect=THRESHOLD)
        why = "less than half of them" if p <= 0.05 else "no more than the best head of shuffled orders"
        if self._computed_elsewhere:
            why += "; the model answers successor prompts all the same: computed, but not by a head"
        return Verdict("not_found", f"{said}, {why}.", p=p, smallest_effect=THRESHOLD)

    @property
    def used(self) -> Verdict:
        if not self.heads:
            return Verdict("not_applicable", "No successor head was found, so there is none to ablate.")
        if self.logit_drop is None or self.accuracy_drop is None:
            return Verdict(
                "not_applicable", "The model could not be asked for successors: see what this run cannot say."
            )
        p = max(_p(self.logit_drop), _p(self.accuracy_drop))
        moved = f"mean-ablating {', '.join(self.locations)} takes {self.accuracy_drop.text()} of the accuracy"
        if p <= 0.05:
            return Verdict("found", f"{moved}, more than it takes from shuffled answers.", p=p)
        return Verdict("not_found", f"{moved}, no more than from shuffled answers.", p=p)

    @property
    def effect(self) -> Estimate:
        if self.logit_drop is not None:
            return self.logit_drop
        layer, head = self.best
        control = self.score.control
        assert control is not None
        return Estimate(
            value=self.score.value[layer, head],
            low=self.score.low[layer, head],
            high=self.score.high[layer, head],
            n=self.score.n,
            unit=self.score.unit,
            method=self.score.method,
            control=control.flatten(1).amax(1),
            control_name="best head, item order shuffled",
        )

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(f"{layer}.{head}" for layer, head in self.heads)

    def answer(self) -> str:
        layer, head = self.heads[0] if self.heads else self.best
        classes = ", ".join(f"{n} {s:.2f}" for n, s in zip(self.classes, self.class_score[:, layer, head], strict=True))
        back, same = self.profile[0, layer, head], self.profile[1, layer, head]
        assert self.score.control is not None
        null = self.score.control.flatten(1).amax(1).double().quantile(0.95)
        text = (
            f"Head {layer}.{head} maps {self._at(self.score)} of {self.score.n} items to their successor ({classes}), "
            f"{back:.2f} to their predecessor and {same:.2f} to themselves; the best of all heads reaches "
            f"{null:.2f} in 5 % of shuffled orders."
        )
        if self.heads:
            others = f" {len(self.heads)} heads pass in all." if len(self.heads) > 1 else ""
            return f"{text}{others}"
        if self._computed_elsewhere:
            assert self.behaviour is not None
            return (
                f"Computed, but not by a head: the model answers {self.behaviour.text()} of successor prompts (shuffled "
                f"answers {self.behaviour.control_text()}), yet no head's OV circuit does it. {text}"
            )
        return f"No successor head. {text}"

    def causal_check(self) -> str:
        if self.behaviour is None:
            return "The model could not be asked for successors, so nothing was edited."
        asked = f"The model answers {self.behaviour.text()} of {self.behaviour.n} items' successor prompts right within class"
        if self.logit_drop is None or self.accuracy_drop is None:
            return (
                f"{asked} (shuffled answers {self.behaviour.control_text()}). No head was found, so none was ablated."
            )
        return (
            f"{asked}. With head{'s' * (len(self.heads) > 1)} {', '.join(self.locations)} replaced by the mean over these "
            f"prompts, accuracy fell by {self.accuracy_drop.text()} and the right answer's logit, centred within its "
            f"class, by {self.logit_drop.text()}; shuffled answers' by {self.logit_drop.control_text()}."
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        silent = [f"{layer}.{head}" for layer, head in (~self.writes).nonzero().tolist()]
        unscored = (f"Heads {', '.join(silent)} write nothing and have no score.",) if silent else ()
        return (f"Convention: {self.convention}.", *unscored, *self.notes)

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        layer, head = self.heads[0] if self.heads else self.best
        per_class = {name: self.class_score[i] for i, name in enumerate(self.classes)}
        shown = {
            "Succession score of every head": plots.heat_map(
                self.score, title="Fraction of items mapped to their successor", hover=per_class
            ),
            f"Head {layer}.{head} and its null": plots.strip(self.effect, title="The observed number over its null"),
        }
        if self.lift is not None:
            shown["Lift in context"] = plots.heat_map(
                self.lift, title="Direct attribution beyond shuffled prompts", colours="diverging"
            )
        if self.attention is not None:
            shown["Attention to the item"] = plots.heat_map(
                self.attention, title="Attention from the answer to the item"
            )
        return shown

    def _at(self, estimate: Estimate) -> str:
        layer, head = self.heads[0] if self.heads else self.best
        value, low, high = (getattr(estimate, k)[layer, head] for k in ("value", "low", "high"))
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"

    @property
    def _computed_elsewhere(self) -> bool:
        if self.heads or self.behaviour is None:
            return False
        return bool(self.behaviour.low > THRESHOLD) and _p(self.behaviour) <= 0.05


def needs_ordinal_tokens(model: HookedModel) -> str | None:
    """Return why ordinals cannot be put to the heads of this model, or None."""
    if not model.is_transformer or not hasattr(model.model, "W_V"):
        return "it has no attention heads"
    return has_ordinal_tokens(model.tokenizer, d_vocab=model.cfg.d_vocab)


def planted_head(strength: float, seed: int) -> Planted:
    """Return a random model with one head edited to map every item to the next at `strength`, and where it is."""
    from mechinterp_toolkit.toys import planted_successor

    hf_model, tokenizer, (layer, head) = planted_successor(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), (f"{layer}.{head}",), {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return the trained ordinal toy with the tokens of each class permuted: it learned another order."""
    from mechinterp_toolkit.toys import relabelled_ordinal

    return relabelled_ordinal("toy/ordinal", seed)


@analysis(
    question="Which heads map an ordinal to its successor?",
    paper="Gould et al. 2024, arXiv:2312.09230",
    applies=needs_ordinal_tokens,
    planted=planted_head,
    twins={"random weights": random_model, "scrambled": scrambled_model},
)
def successor_heads(
    model: HookedModel,
    *,
    classes: tuple[str, ...] = STANDARD_CLASSES,
    representation: Representation = "resid_post_0",
    layer_norm: bool = True,
    biases: bool = False,
    candidates: Candidates = "class",
    draws: int = 999,
    seed: int = 0,
) -> SuccessorHeads:
    """Score the OV circuit of every head for succession, and mean-ablate the heads found.

    Args:
        model: a transformer with a tokenizer that knows ordinal words.
        classes: names of `prompts.ORDINAL_CLASSES`.
        representation: what stands for a token: the residual stream after block 0 or what the first MLP writes, both
            from running the model on the token alone ("resid_post_0", "mlp_out_0"; heads of block 0 then read the
            stream before it); the first MLP called directly on
            the embedding, without LayerNorm, as in the published sweep ("mlp_0_raw"); or the embedding ("embed").
        layer_norm: whether the LayerNorms in front of the head and of the unembedding are applied.
        biases: whether b_V, b_O and the final LayerNorm's bias are added.
        candidates: whose logits compete: the items of the class, its successors only, all items, or the vocabulary.
        draws: shuffled orders behind the null.
        seed: of all draws.

    Raises:
        TokenisationError: no class is usable with this tokenizer.
    """
    found = ordinal_classes(model.require_tokenizer(), classes)
    usable, notes = found.classes, list(found.caveats)
    convention = Convention(representation, layer_norm, biases, candidates)
    read = best_candidates(model, usable, convention)
    scores = _scores(read.best, usable, draws, seed)
    heads = _heads_above(scores.score.value, scores.p)
    prompts, causal = None, _Causal(*[None] * len(_Causal._fields))
    try:
        prompts = _successor_prompts(model, usable, seed)
    except TokenisationError as error:
        notes.append(f"The model was not asked for successors: {error}")
    if prompts is not None:
        causal = _causal(model, prompts, usable, heads, draws, seed)
        notes += [f"{d.word}: {d.reason}" for d in prompts.dropped]
    return SuccessorHeads(
        classes=tuple(usable),
        n_pairs=tuple(len(c.pairs(1)) for c in usable.values()),
        **scores._asdict(),
        writes=read.writes,
        **causal._asdict(),
        convention=f"{convention}; macro-average over classes",
        notes=tuple(notes),
        prompts_hash=None if prompts is None else prompts.hash,
    )


class _Scores(NamedTuple):
    score: Estimate
    difference: Estimate
    p: Tensor
    class_score: Tensor
    profile: Tensor


class _Causal(NamedTuple):
    attention: Estimate | None
    attribution: Estimate | None
    lift: Estimate | None
    behaviour: Estimate | None
    logit_drop: Estimate | None
    accuracy_drop: Estimate | None


def _heads_above(score: Float[Tensor, "layer head"], p: Float[Tensor, "layer head"]) -> tuple[tuple[int, int], ...]:
    passing = (p <= 0.05) & (score >= THRESHOLD)
    order = score.masked_fill(~passing, -1).flatten().argsort(descending=True, stable=True)
    return tuple(divmod(int(i), score.shape[1]) for i in order[: int(passing.sum())])


def _scores(
    best: Mapping[str, Int[Tensor, "layer head item"]], classes: Mapping[str, OrdinalClass], draws: int, seed: int
) -> _Scores:
    """Scores of all heads, and of all heads under the same shuffled orders."""
    plus, minus, same = ({n: _hits(best[n], c.pairs(o)) for n, c in classes.items()} for o in (1, -1, 0))
    null_plus, null_minus = [], []
    for i, (name, ordinal) in enumerate(classes.items()):
        order = _orders(len(ordinal), draws, seed + i)
        null_plus.append(_shuffled(best[name], ordinal.pairs(1), order))
        null_minus.append(_shuffled(best[name], ordinal.pairs(-1), order))
    null_score = torch.stack(null_plus).mean(0)
    null_difference = null_score - torch.stack(null_minus).mean(0)
    score = _macro(plus, null_score, seed)
    difference = _macro({n: plus[n] - minus[n] for n in classes}, null_difference, seed)
    p = torch.maximum(max_statistic_p(score.value, null_score), max_statistic_p(difference.value, null_difference))
    profile = torch.stack([torch.stack([h.mean(0) for h in part.values()]).mean(0) for part in (minus, same, plus)])
    return _Scores(score, difference, p, torch.stack([h.mean(0) for h in plus.values()]), profile)


def _hits(best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, "pair layer head"]:
    return (best[:, :, pairs[:, 0]] == pairs[:, 1]).double().permute(2, 0, 1)


def _shuffled(
    best: Int[Tensor, "layer head item"], pairs: Int[Tensor, "pair 2"], order: Int[Tensor, "draw item"]
) -> Float[Tensor, "draw layer head"]:
    """Scores with the items put in other orders: the pair (i, j) becomes (order[i], order[j])."""
    given, wanted = order[:, pairs[:, 0]], order[:, pairs[:, 1]]
    rows = [(best[:, :, g] == w).double().mean(-1) for g, w in zip(given, wanted, strict=True)]
    return torch.stack(rows)


def _macro(hits: Mapping[str, Float[Tensor, "pair layer head"]], null: Tensor, seed: int) -> Estimate:
    """Mean over classes of the mean over items; a class that no item of a resample is from is left out of that one."""
    which = torch.cat([torch.full((len(h),), i) for i, h in enumerate(hits.values())])
    member = torch.nn.functional.one_hot(which, len(hits)).double()

    def over_classes(values: Float[Tensor, "n layer head"], weights: Float[Tensor, "draw n"]) -> Tensor:
        size = weights @ member
        scaled = weights * (member @ (1 / size.clamp_min(1e-9)).T).T / (size > 0).sum(1, keepdim=True)
        return (scaled @ values.flatten(1)).reshape(-1, *values.shape[1:])

    return bootstrap(
        torch.cat(list(hits.values())),
        unit_name="items",
        measured="fraction of items",
        seed=seed,
        statistic=over_classes,
        axes=("layer", "head"),
        control=null,
        control_name="item order shuffled within classes",
    )


def _successor_prompts(model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int) -> PromptSet:
    """Prompts whose answer is the successor of their item, in the form this model knows."""
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return successor_queries(tokenizer, classes, seed=seed)
    return _succession(model, classes, seed)


def _succession(
    model: HookedModel, classes: Mapping[str, OrdinalClass], seed: int, *, shuffled: bool = False
) -> PromptSet:
    """Three items that ask for a fourth, separated by commas where the tokenizer knows them."""
    tokenizer = model.require_tokenizer()
    comma = tokenizer.encode(",", add_special_tokens=False)
    known = bool(comma) and tokenizer.unk_token_id not in comma
    return succession_prompts(
        tokenizer,
        classes,
        prepend_bos=bool(model.provenance.prepend_bos),
        per_class=30,
        seed=seed,
        shuffled=shuffled,
        separator="," if known else "",
    )


def _shuffled_prompts(
    model: HookedModel, prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int
) -> list[PromptSet]:
    """The same prompts with what they show in another order, and the same answers."""
    from mechinterp_toolkit.toys import asks_by_query

    tokenizer = model.require_tokenizer()
    if asks_by_query(tokenizer):
        return [_other_items(prompts, classes, seed + draw) for draw in range(SHUFFLES)]
    return [_succession(model, classes, seed + draw, shuffled=True) for draw in range(SHUFFLES)]


def _other_items(prompts: PromptSet, classes: Mapping[str, OrdinalClass], seed: int) -> PromptSet:
    """Prompts that show one item each, with another item of the class in its place."""
    assert prompts.item_position is not None
    generator, tokens, rows = torch.Generator().manual_seed(seed), prompts.tokens.clone(), torch.arange(len(prompts))
    for name, ordinal in classes.items():
        own = _of_class(prompts, name)
        shown = tokens[rows[own], prompts.item_position[own]]
        place = (shown[:, None] == ordinal.tokens).int().argmax(1)
        step = torch.randint(1, len(ordinal), (len(place),), generator=generator)
        tokens[rows[own], prompts.item_position[own]] = ordinal.tokens[(place + step) % len(ordinal)]
    return replace(prompts, tokens=tokens)


def _causal(
    model: HookedModel,
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    heads: Sequence[tuple[int, int]],
    draws: int,
    seed: int,
) -> _Causal:
    """Ask for successors as the model is and with the heads mean-ablated; the null shuffles the answers within class."""
    unit = _units(prompts, classes)
    base = _class_logits(model, prompts, classes)
    shuffles = {n: _orders(len(c), draws, seed + i) for i, (n, c) in enumerate(classes.items())}

    def estimate(value: Mapping[str, Tensor], measured: str) -> Estimate:
        return _answer_estimate(value, prompts, classes, shuffles, unit, measured, seed)

    right = {name: _chosen(logits) for name, logits in base.items()}
    behaviour = estimate(right, "fraction of prompts in [0, 1]")
    context = attribute_heads(model, prompts, _shuffled_prompts(model, prompts, classes, seed), unit, seed=seed)
    seen = (_attention(model, prompts, unit, seed), context.raw, context.lift, behaviour)
    if not heads:
        return _Causal(*seen, None, None)
    means = head_means(model, prompts.tokens, sorted({layer for layer, _ in heads}), mask=prompts.mask)
    with applied(model, ablate_heads(heads, means)):
        edited = _class_logits(model, prompts, classes)
    logit = {n: _centred(base[n]) - _centred(edited[n]) for n in base}
    fewer = {n: right[n] - _chosen(edited[n]) for n in base}
    return _Causal(*seen, estimate(logit, "logits"), estimate(fewer, "fraction of prompts"))


def _orders(n: int, draws: int, seed: int) -> Int[Tensor, "draw item"]:
    """Orders of a class' items; where all of them are fewer than `draws`, they come round again."""
    index = permutations(n, draws=draws, seed=seed).index
    return index[torch.arange(draws) % len(index)]


def _units(prompts: PromptSet, classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " batch"]:
    """The item each prompt is about, numbered over all classes."""
    assert prompts.item is not None
    assert prompts.classes is not None
    first = {name: 1000 * i for i, name in enumerate(classes)}
    return prompts.item + torch.tensor([first[name] for name in prompts.classes])


def _of_class(prompts: PromptSet, name: str) -> Tensor:
    assert prompts.classes is not None
    return torch.tensor([c == name for c in prompts.classes])


def _class_logits(
    model: HookedModel, prompts: PromptSet, classes: Mapping[str, OrdinalClass]
) -> dict[str, Float[Tensor, "prompt item"]]:
    """Logits of the items of each class at the position that answers, for the prompts of that class."""
    rows = []
    for part in prompts.batches(256):
        logits = model.logits(part.tokens, part.mask)
        rows.append(logits[torch.arange(len(part)), part.position].detach().double().cpu())
    last = torch.cat(rows)
    return {n: last[_of_class(prompts, n)][:, c.tokens] for n, c in classes.items() if n in (prompts.classes or ())}


def _chosen(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    """1 where an item has the highest logit of its class, alone."""
    top = logits == logits.amax(1, keepdim=True)
    return (top & (top.sum(1, keepdim=True) == 1)).double()


def _centred(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    return logits - logits.mean(1, keepdim=True)


def _answer_estimate(
    value: Mapping[str, Float[Tensor, "prompt item"]],
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    shuffles: Mapping[str, Int[Tensor, "draw item"]],
    unit: Int[Tensor, " batch"],
    measured: str,
    seed: int,
) -> Estimate:
    """Mean of `value` at the right answers; the control reads it at answers shuffled as whole items within each class."""
    observed = torch.zeros(len(prompts), dtype=torch.float64)
    draws = len(next(iter(shuffles.values())))
    null = torch.zeros(draws, dtype=torch.float64)
    for name, part in value.items():
        rows = _of_class(prompts, name)
        place = {int(t): i for i, t in enumerate(classes[name].tokens)}
        answer = torch.tensor([place[int(t)] for t in prompts.answer[rows]])
        observed[rows] = part[torch.arange(len(part)), answer]
        null += part[torch.arange(len(part)), shuffles[name][:, answer]].sum(1)
    return bootstrap(
        observed,
        unit=unit,
        unit_name="items",
        measured=measured,
        seed=seed,
        control=null / len(prompts),
        control_name="answers shuffled within classes",
    )


def _attention(model: HookedModel, prompts: PromptSet, unit: Tensor, seed: int) -> Estimate | None:
    """Attention from the position that answers to the item; the control looks at another position before it."""
    if prompts.item_position is None:
        return None
    names = tuple(f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers))
    if not all(name in model.hook_points for name in names):
        return None
    rows = torch.arange(len(prompts))
    patterns = activations(model, prompts.tokens, names, mask=prompts.mask)
    last = torch.stack(
        [patterns[n].cpu()[rows, :, prompts.position] for n in names], 1
    ).double()  # batch layer head key
    to_item = last[rows, :, :, prompts.item_position]
    generator = torch.Generator().manual_seed(seed)
    elsewhere = []
    for _ in range(99):
        key = (torch.rand(len(prompts), generator=generator) * prompts.position).long()
        key = key + (key >= prompts.item_position).long()
        elsewhere.append(last[rows, :, :, key].mean(0))
    return bootstrap(
        to_item,
        unit=unit,
        unit_name="items",
        measured="attention in [0, 1]",
        seed=seed,
        axes=("layer", "head"),
        control=torch.stack(elsewhere),
        control_name="another position",
    )


def _p(estimate: Estimate) -> float:
    assert estimate.control is not None
    return float(p_value(estimate.value, estimate.control))
