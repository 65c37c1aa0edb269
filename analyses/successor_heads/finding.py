"""Which heads map an ordinal to its successor (Monday to Tuesday, 3 to 4), whatever the class?

The OV circuit of a head is read from the weights: token representation, the LayerNorm of the head's
layer, W_V W_O, the final LayerNorm, W_U. A head's score is the fraction of items whose successor
gets the highest logit of its class, averaged over classes. *Represented*: some head's score, and
its score minus the same for predecessors, beat the largest over all heads when the order of the
items is shuffled, and the score is at least one half. *Used*: on prompts that ask for a successor,
replacing these heads' outputs by their mean lowers the right answer more than it lowers shuffled
answers.

Beside the verdicts: what the best head writes in each class and across classes, whether it favours
later items, whether tokens split into place and class and the head follows the place, whether
numbers hold n mod T and exchanging it steers the head, resample ablation, heads that stand in for
each other, and what the head does in running text.

What would fool it: a head that suppresses what is near its input scores on successors and
predecessors alike (hence the difference); a head that copies, or that lifts a whole class, moves
answers without mapping anything (hence logits centred within the class); a model may compute
successors in its MLPs, with heads that only carry items, and is then told so. Heads that back each
other up hide each other's effect (pairs are ablated). With some thirty numbers, few periods can be
told apart.

Source: Gould, Ong, Ogden, Conmy 2024, Successor Heads, arXiv:2312.09230 (the score);
maximum-statistic null and the predecessor condition are this toolkit's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp_toolkit.analyses.successor_heads.answers import (
    answer_estimate,
    attention_to_items,
    class_logits,
    item_units,
    right_answer,
    shuffled_prompts,
    successor_prompts,
)
from mechinterp_toolkit.analyses.successor_heads.items import centred, chosen
from mechinterp_toolkit.analyses.successor_heads.scores import orders, score_heads
from mechinterp_toolkit.analyses.successor_heads.states import ItemStates, study_states
from mechinterp_toolkit.analyses.successor_heads.writes import HeadWrites, study_writes
from mechinterp_toolkit.errors import NotApplicable, TokenisationError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.heads.attribution import attribute_heads
from mechinterp_toolkit.heads.in_text import text_study
from mechinterp_toolkit.heads.ov_circuit import (
    Candidates,
    Convention,
    OVReader,
    Representation,
    best_candidates,
)
from mechinterp_toolkit.heads.weights import has_heads
from mechinterp_toolkit.hooks.ablate import (
    Redundancy,
    ablate_heads,
    head_means,
    pair_redundancy,
    resample_heads,
)
from mechinterp_toolkit.intervention import Edits, applied
from mechinterp_toolkit.model import HookedModel, load_model
from mechinterp_toolkit.prompts import (
    STANDARD_CLASSES,
    OrdinalClass,
    PromptSet,
    has_ordinal_tokens,
    ordinal_classes,
)
from mechinterp_toolkit.prompts.corpora import Windows, text_windows
from mechinterp_toolkit.registry import Planted, analysis
from mechinterp_toolkit.results import Estimate, Verdict
from mechinterp_toolkit.stats import p_value, too_few_draws

# A successor head succeeds on more than half of the items: the threshold of Gould et al. 2024.
THRESHOLD = 0.5

OFFSETS = (-1, 0, 1)

MOST_PAIRED = 3
"""Heads ablated in pairs."""

WINDOWS, LENGTH, TEXT_DRAWS = 128, 64, 99
"""Pieces of text that are read, as many as in the paper, tokens in each, and draws behind the
control of shares."""


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
    """Whether the head writes anything: one whose OV circuit is zero has no score, its zeros are
    not a measurement."""

    class_score: Float[Tensor, "class layer head"]
    """`score` of each class on its own, in [0, 1]."""

    profile: Float[Tensor, "offset layer head"]
    """Fraction of items mapped to predecessor, themselves, successor, mean over classes, in [0, 1].
    """

    attention: Estimate | None
    """Attention from the position that answers to the item, [layer head], in [0, 1]."""

    attribution: Estimate | None
    """Direct attribution of each head to the right answer, [layer head], in logits; control:
    shuffled prompts."""

    lift: Estimate | None
    """`attribution` minus its mean over shuffled prompts, [layer head], in logits: a head that
    raises the class has none."""

    behaviour: Estimate | None
    """Fraction of prompts whose right answer has the highest logit of its class; control: answers
    shuffled."""

    logit_drop: Estimate | None
    """Fall of the right answer's logit, centred within its class, when the found heads are
    mean-ablated, in logits."""

    accuracy_drop: Estimate | None
    """Fall of `behaviour` under the same ablation, in [-1, 1]."""

    resample_logit_drop: Estimate | None
    """`logit_drop` with the heads' outputs taken from another prompt, instead of their mean."""

    resample_accuracy_drop: Estimate | None
    """`accuracy_drop` under the same."""

    single_drop: Estimate | None
    """As `logit_drop`, [head], for each of the found heads and those of the highest lift on its
    own; intervals over prompts."""

    pair_drop: Estimate | None
    """By pair of these: what both take together beyond what each takes alone; positive where each
    covers for the other."""

    written: HeadWrites | None
    """What the best head writes to whom, and whether any favours later items; None where no head
    writes anything."""

    states: ItemStates
    """What the tokens in front of the best head hold of place and class and of n mod T, and what it
    makes of that."""

    text_winning: Estimate | None
    """Best head in running text: share of each behaviour where it raises the right token most of
    all heads, in [0, 1]."""

    text_loss_reducing: Estimate | None
    """The same where it lowers the loss."""

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
        return _best(self.score.value, self.writes)

    @property
    def represented(self) -> Verdict:
        if not self.writes.any():
            return Verdict("not_applicable", "No head writes anything: every OV circuit is zero.")
        layer, head = self.heads[0] if self.heads else self.best
        p, value, high = (
            float(self.p[layer, head]),
            self._at(self.score),
            float(self.score.high[layer, head]),
        )
        said = f"head {layer}.{head} maps {value} of the items to their successor"
        assert self.score.control is not None
        short = too_few_draws(len(self.score.control), n_tests=1, procedure="max_statistic")
        if short:
            return Verdict("undecided", short, p=p, smallest_effect=THRESHOLD)
        if self.heads:
            return Verdict(
                "found",
                f"{said}, beyond every head of shuffled orders.",
                p=p,
                smallest_effect=THRESHOLD,
            )
        if p <= 0.05 and high >= THRESHOLD:
            reason = f"{said}: beyond the null, but not surely at least half of them."
            return Verdict("undecided", reason, p=p, smallest_effect=THRESHOLD)
        why = (
            "less than half of them"
            if p <= 0.05
            else "no more than the best head of shuffled orders"
        )
        if self._computed_elsewhere:
            why += "; the model answers successor prompts all the same: computed, but not by a head"
        return Verdict("not_found", f"{said}, {why}.", p=p, smallest_effect=THRESHOLD)

    @property
    def used(self) -> Verdict:
        if not self.heads:
            return Verdict(
                "not_applicable", "No successor head was found, so there is none to ablate."
            )
        if self.logit_drop is None or self.accuracy_drop is None:
            return Verdict(
                "not_applicable",
                "The model could not be asked for successors: see what this run cannot say.",
            )
        p = max(_p(self.logit_drop), _p(self.accuracy_drop))
        moved = (
            f"mean-ablating {', '.join(self.locations)} takes {self.accuracy_drop.text()} of the"
            " accuracy"
        )
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
        classes = ", ".join(
            f"{n} {s:.2f}"
            for n, s in zip(self.classes, self.class_score[:, layer, head], strict=True)
        )
        back, same = self.profile[0, layer, head], self.profile[1, layer, head]
        assert self.score.control is not None
        null = self.score.control.flatten(1).amax(1).double().quantile(0.95)
        text = (
            f"Head {layer}.{head} maps {self._at(self.score)} of {self.score.n} items to their"
            f" successor ({classes}), {back:.2f} to their predecessor and {same:.2f} to themselves;"
            f" the best of all heads reaches {null:.2f} in 5 % of shuffled orders."
        )
        if self.heads:
            others = f" {len(self.heads)} heads pass in all." if len(self.heads) > 1 else ""
            return f"{text}{others}"
        if self._computed_elsewhere:
            assert self.behaviour is not None
            return (
                f"Computed, but not by a head: the model answers {self.behaviour.text()} of"
                f" successor prompts (shuffled answers {self.behaviour.control_text()}), yet no"
                f" head's OV circuit does it. {text}"
            )
        return f"No successor head. {text}"

    def causal_check(self) -> str:
        if self.behaviour is None:
            return "The model could not be asked for successors, so nothing was edited."
        asked = (
            f"The model answers {self.behaviour.text()} of {self.behaviour.n} items' successor"
            " prompts right within class"
        )
        if self.logit_drop is None or self.accuracy_drop is None:
            return (
                f"{asked} (shuffled answers {self.behaviour.control_text()}). No head was found, so"
                " none was ablated."
            )
        return (
            f"{asked}. With head{'s' * (len(self.heads) > 1)} {', '.join(self.locations)} replaced"
            f" by the mean over these prompts, accuracy fell by {self.accuracy_drop.text()} and the"
            f" right answer's logit, centred within its class, by {self.logit_drop.text()};"
            f" shuffled answers' by {self.logit_drop.control_text()}.{self._further_edits()}"
        )

    def _further_edits(self) -> str:
        said = ""
        if self.resample_logit_drop is not None and self.resample_accuracy_drop is not None:
            said += (
                " With outputs of other prompts in their place, accuracy fell by"
                f" {self.resample_accuracy_drop.text()} and the logit by"
                f" {self.resample_logit_drop.text()}; shuffled answers' by"
                f" {self.resample_logit_drop.control_text()}."
            )
        if self.pair_drop is not None:
            most = int(self.pair_drop.value.argmax())
            said += (
                f" Of {len(self.pair_drop.value)} pairs of heads,"
                f" {self.pair_drop.label('pair', most)} cover for each other most: together they"
                f" take {self.pair_drop.at(most).text()} logits beyond what each takes alone."
            )
        states = self.states
        if states.steering is not None and states.steering_permuted is not None:
            said += (
                f" Exchanging n mod {states.steering_period} in the numbers, the best head follows"
                f" {states.steering.text()} of the exchanges; with residues permuted"
                f" {states.steering_permuted.mean():.2f}, otherwise"
                f" {states.steering.control_text()}."
            )
        return said

    @property
    def caveats(self) -> tuple[str, ...]:
        silent = [f"{layer}.{head}" for layer, head in (~self.writes).nonzero().tolist()]
        unscored = (
            (f"Heads {', '.join(silent)} write nothing and have no score.",) if silent else ()
        )
        written = () if self.written is None else self.written.notes
        return (
            f"Convention: {self.convention}.",
            *unscored,
            *self.notes,
            *written,
            *self.states.notes,
        )

    @property
    def estimates(self) -> dict[str, Estimate]:
        parts = [vars(part) for part in (self.written, self.states) if part is not None]
        nested = {
            name: value
            for part in parts
            for name, value in part.items()
            if isinstance(value, Estimate)
        }
        return super().estimates | nested

    def figures(self) -> dict[str, Any]:
        from mechinterp_toolkit import plots

        layer, head = self.heads[0] if self.heads else self.best
        per_class = {name: self.class_score[i] for i, name in enumerate(self.classes)}
        shown = {
            "Succession score of every head": plots.heat_map(
                self.score, title="Fraction of items mapped to their successor", hover=per_class
            ),
            f"Head {layer}.{head} and its null": plots.strip(
                self.effect, title="The observed number over its null"
            ),
        }
        if self.lift is not None:
            shown["Lift in context"] = plots.heat_map(
                self.lift, title="Direct attribution beyond shuffled prompts", colours="diverging"
            )
        if self.attention is not None:
            shown["Attention to the item"] = plots.heat_map(
                self.attention, title="Attention from the answer to the item"
            )
        for where, shares in (
            ("wins", self.text_winning),
            ("lowers the loss", self.text_loss_reducing),
        ):
            if shares is not None:
                title = f"What head {layer}.{head} does"
                shown[f"In running text, where it {where}"] = plots.spectrum(shares, title=title)
        written = {} if self.written is None else self.written.figures(layer, head)
        return shown | written | self.states.figures()

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
    if not has_heads(model):
        return "it has no attention heads"
    return has_ordinal_tokens(model.tokenizer, d_vocab=model.cfg.d_vocab)


def planted_head(strength: float, seed: int) -> Planted:
    """Return a random model with one head edited to map every item to the next at `strength`, and
    where it is."""
    from mechinterp_toolkit.toys import planted_successor

    hf_model, tokenizer, (layer, head) = planted_successor(strength, seed)
    return Planted(load_model(hf_model, tokenizer=tokenizer), (f"{layer}.{head}",), {})


def random_model(seed: int) -> HookedModel:
    """Return the architecture of the ordinal toy with random weights."""
    return load_model("toy/ordinal").random_twin(seed)


def scrambled_model(seed: int) -> HookedModel:
    """Return the trained ordinal toy with the tokens of each class permuted: it learned another
    order."""
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
    text: str = "",
    draws: int = 999,
    seed: int = 0,
) -> SuccessorHeads:
    """Score the OV circuit of every head for succession, ablate the heads found, and describe the
    best one.

    Args:
        model: a transformer with a tokenizer that knows ordinal words.
        classes: names of `prompts.ORDINAL_CLASSES`.
        representation: what stands for a token: the residual stream after block 0 or what the first
            MLP writes, both from running the model on the token alone ("resid_post_0", "mlp_out_0";
            heads of block 0 then read the stream before it); the first MLP called directly on the
            embedding, without LayerNorm, as in the published sweep ("mlp_0_raw"); or the embedding
            ("embed").
        layer_norm: whether the LayerNorms in front of the head and of the unembedding are applied.
        biases: whether b_V, b_O and the final LayerNorm's bias are added.
        candidates: whose logits compete: the items of the class, its successors only, all items, or
            the vocabulary.
        text: a corpus in which to see what the best head does, as `corpora.texts` takes it (a file,
            a folder or a dataset's name); empty: none. Each head of the model costs one unembedding
            of `WINDOWS` x `LENGTH` tokens.
        draws: shuffled orders behind the null.
        seed: of all draws.

    Raises:
        TokenisationError: no class is usable with this tokenizer.
        NotApplicable: no class has two items whose successors it has too.
        ToolkitError: `text` holds no text, or fewer than two pieces of it.
    """
    found = ordinal_classes(model.require_tokenizer(), classes)
    notes = list(found.caveats)
    usable = _with_successors(found.classes, model, notes)
    windows = _windows(model, text) if text else None
    convention = Convention(representation, layer_norm, biases, candidates)
    read = best_candidates(model, usable, convention)
    scores = score_heads(read.best, usable, draws, seed)
    heads = _heads_above(scores.score.value, scores.p)
    prompts, causal = None, _Causal()
    try:
        prompts = successor_prompts(model, usable, seed)
    except TokenisationError as error:
        notes.append(f"The model was not asked for successors: {error}")
    if prompts is not None:
        causal = _causal(model, prompts, usable, heads, draws, seed, notes)
        notes += [f"{d.word}: {d.reason}" for d in prompts.dropped]
    best = heads[0] if heads else _best(scores.score.value, read.writes)
    reader = OVReader(model, torch.cat([c.tokens for c in usable.values()]), convention)
    return SuccessorHeads(
        classes=tuple(usable),
        n_pairs=tuple(len(c.pairs(1)) for c in usable.values()),
        **scores._asdict(),
        writes=read.writes,
        **causal._asdict(),
        written=study_writes(reader, usable, best, seed=seed) if read.writes.any() else None,
        states=study_states(reader, usable, best, follow=bool(heads), seed=seed),
        **_in_text(model, windows, best, seed, notes)._asdict(),
        convention=f"{convention}; macro-average over classes",
        notes=tuple(notes),
        prompts_hash=None if prompts is None else prompts.hash,
    )


def _with_successors(
    classes: Mapping[str, OrdinalClass], model: HookedModel, notes: list[str]
) -> dict[str, OrdinalClass]:
    """The classes with two pairs of an item and its successor or more; the others are noted."""
    kept = {name: one for name, one in classes.items() if len(one.pairs(1)) >= 2}
    lost = [
        f"{name}: of {', '.join(one.words)} hardly one follows another"
        for name, one in classes.items()
        if name not in kept
    ]
    notes += [f"{reason}; left out." for reason in lost]
    if not kept:
        raise NotApplicable(
            f"no ordinal class can be put to {model.provenance.checkpoint}: {'; '.join(lost)}."
        )
    return kept


class _Causal(NamedTuple):
    attention: Estimate | None = None
    attribution: Estimate | None = None
    lift: Estimate | None = None
    behaviour: Estimate | None = None
    logit_drop: Estimate | None = None
    accuracy_drop: Estimate | None = None
    resample_logit_drop: Estimate | None = None
    resample_accuracy_drop: Estimate | None = None
    single_drop: Estimate | None = None
    pair_drop: Estimate | None = None


class _InText(NamedTuple):
    text_winning: Estimate | None = None
    text_loss_reducing: Estimate | None = None


def _heads_above(
    score: Float[Tensor, "layer head"], p: Float[Tensor, "layer head"]
) -> tuple[tuple[int, int], ...]:
    passing = (p <= 0.05) & (score >= THRESHOLD)
    order = score.masked_fill(~passing, -1).flatten().argsort(descending=True, stable=True)
    return tuple(divmod(int(i), score.shape[1]) for i in order[: int(passing.sum())])


def _best(
    score: Float[Tensor, "layer head"], writes: Bool[Tensor, "layer head"]
) -> tuple[int, int]:
    return divmod(int(score.masked_fill(~writes, -1).argmax()), score.shape[1])


def _causal(
    model: HookedModel,
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    heads: Sequence[tuple[int, int]],
    draws: int,
    seed: int,
    notes: list[str],
) -> _Causal:
    """Ask for successors as the model is and with the heads ablated; the null shuffles the answers
    within class."""
    unit = item_units(prompts, classes)
    base = class_logits(model, prompts, classes)
    shuffles = {n: orders(len(c), draws, seed + i) for i, (n, c) in enumerate(classes.items())}

    def estimate(value: Mapping[str, Tensor], measured: str) -> Estimate:
        return answer_estimate(value, prompts, classes, shuffles, measured, seed)

    right = {name: chosen(logits) for name, logits in base.items()}
    behaviour = estimate(right, "fraction of prompts in [0, 1]")
    context = attribute_heads(
        model, prompts, shuffled_prompts(model, prompts, classes, seed), unit, seed=seed
    )
    attention = attention_to_items(model, prompts, unit, seed)
    seen = _Causal(attention, context.raw, context.lift, behaviour)
    if not heads:
        return seen

    def drops(edits: Edits) -> tuple[Estimate, Estimate]:
        with applied(model, edits):
            edited = class_logits(
                model, prompts, classes, batch_size=len(prompts)
            )  # resampling knows its rows
        logit = {n: centred(base[n]) - centred(edited[n]) for n in base}
        fewer = {n: right[n] - chosen(edited[n]) for n in base}
        return estimate(logit, "logits"), estimate(fewer, "fraction of prompts")

    paired = _to_pair(heads, context.lift.value)
    means = head_means(
        model, prompts.tokens, sorted({layer for layer, _ in (*heads, *paired)}), mask=prompts.mask
    )
    resampled: tuple[Estimate | None, Estimate | None] = (None, None)
    if prompts.mask.all():
        resampled = drops(resample_heads(model, heads, prompts.tokens, seed=seed))
    else:
        notes.append(
            "Prompts differ in length, so the heads' outputs could not be taken from other prompts."
        )
    pairs = _pairs(model, prompts, classes, paired, means, seed, notes)
    return _Causal(
        *seen[:4],
        *drops(ablate_heads(heads, means)),
        *resampled,
        *((pairs.single, pairs.interaction) if pairs else ()),
    )


def _to_pair(
    heads: Sequence[tuple[int, int]], lift: Float[Tensor, "layer head"]
) -> tuple[tuple[int, int], ...]:
    """The found heads, best first, and after them those of the highest lift."""
    lifted = [
        divmod(int(i), lift.shape[1]) for i in lift.flatten().argsort(descending=True, stable=True)
    ]
    return tuple(dict.fromkeys((*heads, *lifted)))[:MOST_PAIRED]


def _pairs(
    model: HookedModel,
    prompts: PromptSet,
    classes: Mapping[str, OrdinalClass],
    heads: Sequence[tuple[int, int]],
    means: Mapping[int, Tensor],
    seed: int,
    notes: list[str],
) -> Redundancy | None:
    if len(heads) < 2:
        notes.append("The model has a single head, so there is none that could stand in for it.")
        return None
    metric = right_answer(prompts, classes)
    return pair_redundancy(
        model, prompts.tokens, heads, metric, means, mask=prompts.mask, seed=seed
    )


def _windows(model: HookedModel, text: str) -> Windows:
    bos = bool(model.provenance.prepend_bos)
    length = min(LENGTH, model.cfg.n_ctx - bos)
    return text_windows(model.require_tokenizer(), text, WINDOWS, length, prepend_bos=bos)


def _in_text(
    model: HookedModel, windows: Windows | None, best: tuple[int, int], seed: int, notes: list[str]
) -> _InText:
    if windows is None:
        return _InText()
    try:
        study = text_study(model, windows, head=best, draws=TEXT_DRAWS, seed=seed)
    except (NotApplicable, TokenisationError) as error:
        notes.append(f"The head was not watched in running text: {error}")
        return _InText()
    if study.winning is None or study.loss_reducing is None:
        notes.append(
            "The best head wins, or lowers the loss, in fewer than two texts: too few for shares."
        )
    return _InText(study.winning, study.loss_reducing)


def _p(estimate: Estimate) -> float:
    assert estimate.control is not None
    return float(p_value(estimate.value, estimate.control))
