"""What does a head do in running text: count on, spell acronyms, copy, or something else?

*Direct effect*: replace what a head writes by its mean over the corpus on the way to the logits
alone. The stream behind the last block loses the write and gains the mean, the final LayerNorm is
computed anew, and nothing in between notices. At each position that asks how far the correct next
token's logit falls and how much the loss rises. A head *wins* where its fall is the largest of all
heads. `text_study` sorts those positions by four rules about what the head attends to and what
comes next.

What would fool it: a rule that is often true anywhere. Text repeats itself, so "copying" holds for
any head that attends to what was there before; every share stands beside the same share at random
positions of the same texts. Indirect effects are not seen. A beginning-of-sequence token counts in
the mean as any other token.

Source: Gould et al. 2024, Successor Heads, arXiv:2312.09230, its study of natural text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.accumulate import Mean
from mechinterp_toolkit.errors import NotApplicable, TokenisationError, ToolkitError
from mechinterp_toolkit.heads.weights import (
    final_norm,
    head_weights,
    unembedding,
    why_no_heads,
    why_not_direct,
)
from mechinterp_toolkit.intervention import Site, observed
from mechinterp_toolkit.model import HookedModel, takes_model
from mechinterp_toolkit.prompts import OrdinalClass, ordinal_classes
from mechinterp_toolkit.prompts.corpora import Windows
from mechinterp_toolkit.record import activations, record
from mechinterp_toolkit.results import Estimate
from mechinterp_toolkit.stats import bootstrap

BEHAVIOURS = ("successorship", "acronym", "copying", "greater-than", "other")
"""What a head can be doing at a position. Only "other" and "greater-than" exclude others, so shares
can exceed 1 in sum."""

ATTENDED = 5
"""How many of the most attended positions a rule looks at, as in the paper."""

_WORD = 8  # tokens back in which the start of an acronym is looked for
_BEFORE_WORD = re.compile(r".*[^\w.]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """Result of `direct_effects`; position p predicts token p + 1, so the last token has none."""

    logit_fall: Float[Tensor, "layer head batch pos"]
    """How far the correct next token's logit falls without the head's own write, in logits."""

    loss_rise: Float[Tensor, "layer head batch pos"]
    """How much the loss rises, in nats."""

    valid: Bool[Tensor, "batch pos"]
    """Where a real token predicts a real token; elsewhere the numbers mean nothing."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Positions of a corpus, the strongest first."""

    row: Int[Tensor, " case"]
    """Which row of tokens."""

    position: Int[Tensor, " case"]
    """The position that predicts; the correct token stands behind it."""

    effect: Float[Tensor, " case"]
    """What they are ranked by: fall of the correct logit (logits) or rise of the loss (nats)."""

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class TextStudy:
    """Result of `text_study`."""

    head: tuple[int, int]
    """`(layer, head)`."""

    winning: Estimate | None
    """Share of each behaviour among the positions the head wins, in [0, 1]; None where fewer than
    two texts have one."""

    loss_reducing: Estimate | None
    """The same among the positions where ablating the head raises the loss."""

    winning_cases: Cases
    """The positions behind `winning`."""

    loss_reducing_cases: Cases
    """The positions behind `loss_reducing`."""

    n_positions: int
    """All positions that could have been either."""


@takes_model
def text_study(
    model: HookedModel,
    windows: Windows,
    *,
    head: tuple[int, int],
    classes: Mapping[str, OrdinalClass] | None = None,
    at: Bool[Tensor, "..."] | None = None,
    draws: int = 199,
    batch_size: int = 8,
    seed: int = 0,
) -> TextStudy:
    """Sort the positions at which a head matters by what it does there.

    Args:
        model: a transformer with its tokenizer.
        windows: what it reads, as of `corpora.text_windows`; intervals resample its texts.
        head: `(layer, head)`.
        classes: ordinal classes; None takes the standard ones, with and without a space in front.
        at: True at the positions [window pos] to find cases among, where only some predictions are
            of interest; None takes all. The control is of any position of the same windows.
        draws: of the control, which takes from every window as many random positions as it has
            cases.
        batch_size: windows per forward pass.
        seed: of intervals and control.

    Raises:
        NotApplicable, ToolkitError: as `direct_effects`; there is no such head, or `at` does not
            fit.
        TokenisationError: no tokenizer, or no ordinal class it can express.
    """
    tokenizer, tokens = model.require_tokenizer(), windows.tokens
    mask = _checked_mask(model, tokens, windows.mask)
    layer, which = _checked_head(head, (model.cfg.n_layers, model.cfg.n_heads))
    if at is not None and at.shape != tokens.shape:
        raise ToolkitError(
            f"at has shape {tuple(at.shape)} and tokens {tuple(tokens.shape)}; give one of the same"
            " shape."
        )
    classes = _both_variants(tokenizer) if classes is None else classes
    effects = direct_effects(model, tokens, mask, batch_size=batch_size)
    table = torch.zeros(*effects.valid.shape, len(BEHAVIOURS), dtype=torch.bool)
    name = f"blocks.{layer}.attn.hook_pattern"
    for rows in torch.arange(len(tokens)).split(batch_size):
        pattern = activations(model, tokens[rows], (name,), mask=mask[rows])[name][:, which]
        row, position = effects.valid[rows].nonzero(as_tuple=True)
        every = Cases(row, position, torch.zeros(len(row)))
        table[rows[row], position] = behaviours(tokenizer, tokens[rows], pattern, every, classes)
    among = effects if at is None else replace(effects, valid=effects.valid & at[:, :-1].cpu())
    winning, reducing = winning_cases(among, head), loss_reducing_cases(among, head)
    return TextStudy(
        head=head,
        winning=_shares(table, effects.valid, winning, windows.text, draws, seed),
        loss_reducing=_shares(table, effects.valid, reducing, windows.text, draws, seed),
        winning_cases=winning,
        loss_reducing_cases=reducing,
        n_positions=int(among.valid.sum()),
    )


@takes_model
def direct_effects(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    batch_size: int = 8,
) -> DirectEffects:
    """Return what each position loses when one head's write to the logits is its mean.

    Two passes over the corpus: means, then effects. Each head costs one unembedding of every token.

    Args:
        model: a transformer.
        tokens: windows of text.
        mask: True at the real tokens [batch pos], which the means are over; None where all are.
        batch_size: rows per forward pass; one set of logits [batch pos d_vocab] per head is held at
            a time.

    Raises:
        NotApplicable: no transformer, or heads do not write into the stream or the stream into the
            logits as assumed.
        ToolkitError: `mask` does not fit, or nothing is predicted anywhere.

    >>> direct_effects("toy/ordinal", torch.tensor([[2, 5, 6], [2, 7, 8]])).logit_fall.shape
    torch.Size([2, 4, 2, 2])
    """
    mask = _checked_mask(model, tokens, mask)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    means = record(
        model, tokens, {name: Mean() for name in names}, mask=mask, batch_size=batch_size
    )
    mean = torch.stack([means[name].value for name in names])  # layer head d_head
    parts = [
        _effects(model, tokens[rows], mask[rows], names, mean)
        for rows in torch.arange(len(tokens)).split(batch_size)
    ]
    logit_fall, loss_rise = torch.cat(parts, 3)
    return DirectEffects(logit_fall, loss_rise, mask[:, :-1] & mask[:, 1:])


def winning_cases(effects: DirectEffects, head: tuple[int, int]) -> Cases:
    """Return where ablating `head` lowers the correct token's logit most of all heads.

    >>> fall = torch.tensor([[3.0, -1.0, 1.0], [2.0, -2.0, 4.0]])[None, :, None]  # two heads
    >>> effects = DirectEffects(fall, fall, torch.ones(1, 3, dtype=torch.bool))
    >>> winning_cases(effects, (0, 0)).position.tolist()  # at position 1 nothing falls
    [0]
    """
    layer, which = _checked_head(head, tuple(effects.logit_fall.shape[:2]))
    own = effects.logit_fall[layer, which]
    others = effects.logit_fall.clone()
    others[layer, which] = 0  # a win has to be a fall
    return _ranked(own, effects.valid & (own > others.flatten(0, 1).amax(0)))


def loss_reducing_cases(
    effects: DirectEffects, head: tuple[int, int], *, most: int | None = None
) -> Cases:
    """Return where ablating `head` raises the loss, the `most` strongest of them (None: all)."""
    layer, which = _checked_head(head, tuple(effects.loss_rise.shape[:2]))
    own = effects.loss_rise[layer, which]
    return _ranked(own, effects.valid & (own > 0), most)


def behaviours(
    tokenizer: Any,
    tokens: Int[Tensor, "batch pos"],
    pattern: Float[Tensor, "batch query key"],
    cases: Cases,
    classes: Mapping[str, OrdinalClass],
) -> Bool[Tensor, "case behaviour"]:
    """Return which of `BEHAVIOURS` each case shows.

    With the `ATTENDED` positions of largest weight, earlier first in ties, weights of 0 left out:

    - successorship: some attended token is an ordinal item and the correct next token is its
      successor;
    - acronym: the correct token completes a word of two capitals or more (full stops aside), and
      its last letter is the first letter, in either case, of the most attended token, which is no
      special one;
    - copying: the correct token is among the attended ones, so it occurred before;
    - greater-than: no successorship, but the correct token comes later in its class than some
      attended one.

    Classes of one name are one class, so that a word after a space and the same word without one
    are the same item.

    Args:
        tokenizer: of the model.
        tokens: the corpus.
        pattern: attention of the head.
        cases: positions of `tokens`.
        classes: `ordinal_classes(tokenizer).classes`, or some of your own.

    Raises:
        ToolkitError: `pattern` does not fit `tokens`, or a case has no correct next token.
    """
    _check_cases(tokens, pattern, cases)
    weight = pattern.detach().cpu()[cases.row, cases.position]  # case key
    weight = weight.masked_fill(torch.arange(tokens.shape[1]) > cases.position[:, None], 0)
    keys = weight.argsort(dim=1, descending=True, stable=True)[:, :ATTENDED]
    attended = tokens.cpu()[cases.row].gather(1, keys)
    rules, shown = _Rules(tokenizer, classes), weight.gather(1, keys) > 0
    table = [
        rules.apply(tokens[row, : position + 2].tolist(), ids[seen].tolist())
        for row, position, ids, seen in zip(
            cases.row.tolist(), cases.position.tolist(), attended, shown, strict=True
        )
    ]
    return torch.tensor(table, dtype=torch.bool).reshape(-1, len(BEHAVIOURS))


def _check_cases(tokens: Tensor, pattern: Tensor, cases: Cases) -> None:
    batch, width = tokens.shape
    if pattern.shape != (batch, width, width):
        raise ToolkitError(
            f"pattern has shape {tuple(pattern.shape)}; expected {(batch, width, width)}, the"
            " attention [batch query key] of one head on these tokens: select the head first."
        )
    if len(cases) and (cases.position.min() < 0 or cases.position.max() >= width - 1):
        raise ToolkitError(
            f"cases reach from position {int(cases.position.min())} to {int(cases.position.max())}"
            f" of {width} tokens; expected 0 to {width - 2}, each with its next token: leave the"
            " others out."
        )


class _Rules:
    """The four rules, with what they look up."""

    def __init__(self, tokenizer: Any, classes: Mapping[str, OrdinalClass]) -> None:
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        # Token -> (class, place) of the items it is, and of their successors.
        self.place: dict[int, set[tuple[str, int]]] = defaultdict(set)
        self.next: dict[int, set[tuple[str, int]]] = defaultdict(set)
        self.texts: dict[int, str] = {}
        for c in classes.values():
            for token, index in zip(c.tokens.tolist(), c.index.tolist(), strict=True):
                self.place[token].add((c.name, index))
                self.next[token].add((c.name, (index + 1) % c.order if c.cyclic else index + 1))

    def apply(self, ids: list[int], attended: list[int]) -> tuple[bool, ...]:
        """Which of `BEHAVIOURS` holds where `ids` ends in the correct token."""
        answer = ids[-1]
        own = self.place.get(answer, set())
        follows = any(self.next.get(token, set()) & own for token in attended)
        later = any(
            name == shown and place > before
            for token in attended
            for shown, before in self.place.get(token, ())
            for name, place in own
        )
        shows = (follows, self._acronym(ids, attended), answer in attended, later and not follows)
        return (*shows, not any(shows))

    def _acronym(self, ids: list[int], attended: list[int]) -> bool:
        if not self._text(ids[-1])[-1:].isupper() or not attended or attended[0] in self.special:
            return False
        word = _BEFORE_WORD.sub("", self._decode(ids[-_WORD:])).replace(".", "")
        first = next((letter for letter in self._text(attended[0]) if letter.isalpha()), "")
        return len(word) > 1 and word.isalpha() and word.isupper() and word[-1] == first.upper()

    def _text(self, token: int) -> str:
        if token not in self.texts:
            self.texts[token] = self._decode([token])
        return self.texts[token]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@torch.no_grad()
def _effects(
    model: HookedModel, tokens: Tensor, mask: Tensor, names: list[str], mean: Tensor
) -> Float[Tensor, "two layer head batch pos"]:
    """Fall of the correct logit and rise of the loss, of one batch."""
    caught: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Site) -> None:
        caught[hook.name] = activation.detach().clone()

    stream = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with observed(model, dict.fromkeys((*names, stream), keep)):
        logits = model.logits(tokens, mask)
    end = caught[stream][:, :-1]
    norm, unembed = final_norm(model), unembedding(model)
    ours = unembed(norm(end))
    _check_readout(model, ours, logits[:, :-1], mask[:, :-1])
    answer = tokens[:, 1:].to(end.device)
    before = _scores(ours, answer)
    falls = []
    for layer, name in enumerate(names):
        output = head_weights(model, layer).output.to(end)  # head d_head d_model
        change = mean[layer].to(end) - caught[name][:, :-1]  # batch pos head d_head
        for head in range(change.shape[2]):
            ablated = unembed(norm(end + change[:, :, head] @ output[head]))
            falls.append((before - _scores(ablated, answer)).cpu())
    return torch.stack(falls, 1).unflatten(1, (len(names), -1))


def _scores(logits: Tensor, answer: Tensor) -> Float[Tensor, "two batch pos"]:
    """Logit and log probability of the answer."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logit = logits.gather(-1, answer[..., None])[..., 0]
    return torch.stack([logit, logit - logits.logsumexp(-1)])


def _check_readout(model: HookedModel, ours: Tensor, logits: Tensor, mask: Tensor) -> None:
    """Refuse a model that does more to the stream than its final norm and unembedding do."""
    if not mask.any():
        return
    real = mask.to(ours.device)
    off = float((ours - logits)[real].abs().max())
    # 1000 rounding units of the largest logit: the same sums in another order are well below.
    if off > 1000 * torch.finfo(ours.dtype).eps * float(ours[real].abs().max()):
        raise NotApplicable(
            f"the logits of {model.provenance.checkpoint} are not the final norm and unembedding of"
            f" its last residual stream (off by {off:.2g}), so a direct effect worked out that way"
            " is not the model's: take another."
        )


def _checked_mask(model: HookedModel, tokens: Tensor, mask: Tensor | None) -> Tensor:
    if reason := why_no_heads(model) or why_not_direct(model):
        raise NotApplicable(
            f"{model.provenance.checkpoint} cannot show what heads do in text: {reason}."
        )
    mask = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask.cpu()
    if mask.shape != tokens.shape:
        raise ToolkitError(
            f"mask has shape {tuple(mask.shape)} and tokens {tuple(tokens.shape)}; give one of the"
            " same shape, True at real tokens, or None."
        )
    if not (mask[:, :-1] & mask[:, 1:]).any():
        raise ToolkitError(
            f"tokens of shape {tuple(tokens.shape)} have no real token followed by another; give"
            " windows of two or more."
        )
    return mask


def _checked_head(head: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    layer, which = head
    if not (0 <= layer < shape[0] and 0 <= which < shape[1]):
        raise ToolkitError(
            f"there is no head {head}; expected (layer, head) with layer 0 to {shape[0] - 1} and"
            f" head 0 to {shape[1] - 1}."
        )
    return layer, which


def _ranked(effect: Tensor, where: Tensor, most: int | None = None) -> Cases:
    row, position = where.nonzero(as_tuple=True)
    order = effect[row, position].argsort(descending=True, stable=True)[:most]
    row, position = row[order], position[order]
    return Cases(row, position, effect[row, position])


def _both_variants(tokenizer: Any) -> dict[str, OrdinalClass]:
    """The standard classes after a space, at the start of a text, or both, as far as there are."""
    both: dict[str, OrdinalClass] = {}
    refused: TokenisationError | None = None
    for leading_space in (True, False):
        try:
            classes = ordinal_classes(tokenizer, leading_space=leading_space).classes
        except TokenisationError as error:
            refused = error
        else:
            both |= {f"{name}, {c.variant}": c for name, c in classes.items()}
    if refused is not None and not both:
        raise refused
    return both


def _shares(
    table: Tensor, valid: Tensor, cases: Cases, text: Tensor, draws: int, seed: int
) -> Estimate | None:
    """Shares of behaviours among cases, beside those at as many random positions of their rows."""
    if len(text[cases.row].unique()) < 2:
        return None
    count = torch.bincount(cases.row, minlength=len(table))[:, None]
    generator = torch.Generator().manual_seed(seed)
    control = []
    for _ in range(draws):
        noise = torch.rand(valid.shape, generator=generator)
        noise = noise.masked_fill(~valid, 2)  # what is not valid comes last
        control.append(table[noise.argsort(1).argsort(1) < count].double().mean(0))
    return bootstrap(
        table[cases.row, cases.position].double(),
        unit=text[cases.row],
        unit_name="texts",
        measured="fraction of cases in [0, 1]",
        seed=seed,
        axes=("behaviour",),
        labels={"behaviour": BEHAVIOURS},
        control=torch.stack(control),
        control_name="random positions of the same texts",
    )
