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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechinterp_toolkit.analyses.successor_heads import _figures, _sentences
from mechinterp_toolkit.analyses.successor_heads._models import (
    needs_ordinal_tokens,
    planted_head,
    random_model,
    scrambled_model,
)
from mechinterp_toolkit.analyses.successor_heads.answers import (
    Answers,
    Questions,
    study_answers,
    successor_prompts,
)
from mechinterp_toolkit.analyses.successor_heads.items import item_tokens
from mechinterp_toolkit.analyses.successor_heads.scores import HeadScores, score_heads
from mechinterp_toolkit.analyses.successor_heads.states import ItemStates, study_states
from mechinterp_toolkit.analyses.successor_heads.writes import HeadWrites, study_writes
from mechinterp_toolkit.errors import NotApplicable, TokenisationError
from mechinterp_toolkit.finding import Finding
from mechinterp_toolkit.heads.in_text import TextStudy, text_study
from mechinterp_toolkit.heads.ov_circuit import (
    Candidates,
    Convention,
    OVReader,
    Representation,
    best_candidates,
)
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import STANDARD_CLASSES, OrdinalClass, ordinal_classes
from mechinterp_toolkit.prompts.corpora import Windows, text_windows
from mechinterp_toolkit.registry import analysis
from mechinterp_toolkit.results import Estimate, Verdict

WINDOWS, LENGTH, TEXT_DRAWS = 128, 64, 99
"""Pieces of text that are read, as many as in the paper, tokens in each, and draws behind the
control of shares."""


@dataclass(frozen=True, kw_only=True)
class SuccessorHeads(Answers, HeadScores, Finding):
    """Result of `successor_heads`: scores of all heads, answers of the model, and the best head."""

    classes: tuple[str, ...]
    """Names of the classes scored."""

    n_pairs: tuple[int, ...]
    """Pairs of an item and its successor in each class."""

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
    def represented(self) -> Verdict:
        return _sentences.represented(self)

    @property
    def used(self) -> Verdict:
        return _sentences.used(self)

    @property
    def effect(self) -> Estimate:
        return self.logit_drop or self.score.at(*self.best, largest=True)

    @property
    def locations(self) -> tuple[str, ...]:
        return tuple(self.score.place(*head) for head in self.heads)

    def answer(self) -> str:
        return _sentences.answer(self)

    def causal_check(self) -> str:
        return _sentences.causal_check(self)

    @property
    def caveats(self) -> tuple[str, ...]:
        return _sentences.caveats(self)

    @property
    def estimates(self) -> dict[str, Estimate]:
        parts = [vars(part) for part in (self.written, self.states) if part is not None]
        nested = {name: number for part in parts for name, number in part.items()}
        return super().estimates | {n: e for n, e in nested.items() if isinstance(e, Estimate)}

    def figures(self) -> dict[str, Any]:
        return _figures.figures(self)


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
    """Score the OV circuit of every head for succession, ablate those found, describe the best one.

    Args:
        model: a transformer with a tokenizer that knows ordinal words.
        classes: names of `prompts.ORDINAL_CLASSES`.
        representation: what stands for a token, see `ov_circuit.Convention`.
        layer_norm: whether the LayerNorms in front of the head and of the unembedding are applied.
        biases: whether b_V, b_O and the final LayerNorm's bias are added.
        candidates: whose logits compete: the items of the class, its successors only ("targets"),
            all items ("ordinal"), or the vocabulary.
        text: a corpus in which to see what the best head does, as `corpora.texts` takes it; empty:
            none. Each head costs one unembedding of `WINDOWS` x `LENGTH` tokens.
        draws: shuffled orders behind the null.
        seed: of all draws.

    Raises:
        TokenisationError: no class is usable with this tokenizer.
        NotApplicable: no class has two items whose successors it has too.
        ToolkitError: `text` holds no text, or fewer than two pieces of it.

    >>> finding = successor_heads("toy/ordinal", classes=("days", "months"), draws=99)
    >>> finding.heads, finding.represented.outcome, finding.used.outcome
    (((1, 1),), 'found', 'found')
    """
    items = ordinal_classes(model.require_tokenizer(), classes)
    notes = list(items.caveats)
    usable = _with_successors(items.classes, model, notes)
    windows = _windows(model, text) if text else None
    convention = Convention(representation, layer_norm, biases, candidates)
    scores = score_heads(best_candidates(model, usable, convention), usable, draws, seed)
    asked = _questions(model, usable, draws, seed, notes)
    answers = study_answers(asked, scores.heads, notes) if asked else Answers()
    notes += [f"{d.word}: {d.reason}" for d in asked.prompts.dropped] if asked else []
    head, reader = scores.studied, OVReader(model, item_tokens(usable), convention)
    study = _in_text(model, windows, head, seed, notes) if windows else None
    return SuccessorHeads(
        **vars(scores),
        **vars(answers),
        classes=tuple(usable),
        n_pairs=tuple(len(ordinal.pairs(1)) for ordinal in usable.values()),
        written=study_writes(reader, usable, head, seed=seed) if scores.writes.any() else None,
        states=study_states(reader, usable, head, follow=bool(scores.heads), seed=seed),
        text_winning=study.winning if study else None,
        text_loss_reducing=study.loss_reducing if study else None,
        convention=f"{convention}; macro-average over classes",
        notes=tuple(notes),
        prompts_hash=asked.prompts.hash if asked else None,
    )


def _with_successors(
    classes: Mapping[str, OrdinalClass], model: HookedModel, notes: list[str]
) -> dict[str, OrdinalClass]:
    """The classes with two pairs of an item and its successor or more; the others are noted."""
    kept = {name: ordinal for name, ordinal in classes.items() if len(ordinal.pairs(1)) >= 2}
    lost = [
        f"{name}: of {', '.join(ordinal.words)} hardly one follows another"
        for name, ordinal in classes.items()
        if name not in kept
    ]
    notes += [f"{reason}; left out." for reason in lost]
    if not kept:
        raise NotApplicable(
            f"no ordinal class can be put to {model.provenance.checkpoint}: {'; '.join(lost)}."
        )
    return kept


def _windows(model: HookedModel, text: str) -> Windows:
    bos = bool(model.provenance.prepend_bos)
    length = min(LENGTH, model.cfg.n_ctx - bos)
    return text_windows(model.require_tokenizer(), text, WINDOWS, length, prepend_bos=bos)


def _questions(
    model: HookedModel,
    classes: Mapping[str, OrdinalClass],
    draws: int,
    seed: int,
    notes: list[str],
) -> Questions | None:
    try:
        prompts = successor_prompts(model, classes, seed)
    except TokenisationError as error:
        notes.append(f"The model was not asked for successors: {error}")
        return None
    return Questions(model, prompts, classes, draws, seed)


def _in_text(
    model: HookedModel, windows: Windows, head: tuple[int, int], seed: int, notes: list[str]
) -> TextStudy | None:
    try:
        study = text_study(model, windows, head=head, draws=TEXT_DRAWS, seed=seed)
    except (NotApplicable, TokenisationError) as error:
        notes.append(f"The head was not watched in running text: {error}")
        return None
    if study.winning is None or study.loss_reducing is None:
        notes.append(
            "The best head wins, or lowers the loss, in fewer than two texts: too few for shares."
        )
    return study
