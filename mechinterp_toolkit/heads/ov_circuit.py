"""What does a head write for a token, read from the weights alone?

The OV circuit of a head takes what stands for a token, through the LayerNorm of the head's layer,
W_V, W_O and the final LayerNorm, to the logits. Published codes differ in each of these steps, and
scores move by tens of points with them, so every step is a named part of a `Convention`.

What would fool it: a tie (of a head that writes nothing, or of low precision) is no winner, so
logits are float32 and a tie counts as none.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; the conventions are
those of Gould et al. 2024, arXiv:2312.09230, and of code that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable
from mechinterp_toolkit.heads.weights import (
    embedding,
    final_norm,
    head_weights,
    mlp_alone,
    norm_before,
    norm_behind,
    unembedding,
    why_no_heads,
)
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import OrdinalClass
from mechinterp_toolkit.record import activations

Representation = Literal["resid_post_0", "mlp_out_0", "mlp_0_raw", "embed"]
Candidates = Literal["class", "targets", "ordinal", "vocab"]


@dataclass(frozen=True)
class Convention:
    """How an OV circuit is read.

    >>> str(Convention("embed", layer_norm=False))
    'representation embed, LayerNorms left out, biases left out, highest logit among: class'
    """

    representation: Representation = "resid_post_0"
    """What stands for a token: the residual stream after block 0 or what the first MLP writes, both
    from running the model on the token alone (heads of block 0 then read the stream before it); the
    first MLP called directly on the embedding, as in the published sweep; or the embedding."""

    layer_norm: bool = True
    """Whether the LayerNorms in front of the head and of the unembedding are applied."""

    biases: bool = False
    """Whether b_V, b_O and the final LayerNorm's bias are added: the same row for every token."""

    candidates: Candidates = "class"
    """Whose logits compete: the items of the class, its successors only, all items, or the
    vocabulary."""

    def __str__(self) -> str:
        return (
            f"representation {self.representation}, LayerNorms"
            f" {'applied' if self.layer_norm else 'left out'}, biases"
            f" {'added' if self.biases else 'left out'}, highest logit among: {self.candidates}"
        )


class BestCandidates(NamedTuple):
    """Result of `best_candidates`."""

    best: dict[str, Int[Tensor, "layer head of_class"]]
    """Which item of its class gets the highest logit, per class; -1 where none does."""

    writes: Bool[Tensor, "layer head"]
    """Whether the head writes anything, for any item."""


@torch.no_grad()
def best_candidates(
    model: HookedModel, classes: Mapping[str, OrdinalClass], convention: Convention
) -> BestCandidates:
    """Return which candidate each head gives the highest logit, for every item of every class.

    Without biases the final LayerNorm is a linear map up to a positive scale, which changes no
    order: it is folded into the unembedding, and no head's write is ever made. Logits are of one
    head and one contest at a time.

    Args:
        model: whose heads and unembedding are read.
        classes: whose items are shown.
        convention: how they are read; a winner outside the item's class, or a tie, is -1, and so is
            a lone candidate.

    >>> from mechinterp_toolkit.model import load_model
    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> model = load_model("toy/ordinal")
    >>> days = ordinal_classes(model.tokenizer, "days").classes
    >>> read = best_candidates(model, days, Convention())
    >>> [days["days"].words[i] for i in read.best["days"][1, 1, :2]]  # head 1.1, shown Monday first
    ['Tuesday', 'Wednesday']
    """
    reader = OVReader(model, torch.cat([c.tokens for c in classes.values()]), convention)
    contests = _contests(reader, classes)
    won, writes = [], []
    for layer in range(model.cfg.n_layers):
        factors = reader._factors(reader.states(layer), layer)
        won.append(torch.cat([_winning_tokens(factors, contest) for contest in contests], dim=1))
        writes.append(_are_nonzero(factors))
    parts = torch.stack(won).cpu().split([len(c) for c in classes.values()], dim=-1)
    best = {}
    for (name, ordinal), tokens in zip(classes.items(), parts, strict=True):
        # One place more than there are tokens: the last one is where the token -1 looks.
        place = torch.full((reader.unembed.shape[1] + 1,), -1)
        place[ordinal.tokens.cpu()] = torch.arange(len(ordinal))
        best[name] = place[tokens]
    return BestCandidates(best, torch.stack(writes).cpu())


class OVReader:
    """What heads make of states in front of them, in logits.

    The final LayerNorm is applied to a head's write alone.

    >>> from mechinterp_toolkit.model import load_model
    >>> reader = OVReader(load_model("toy/ordinal"), torch.tensor([5, 6]), Convention())
    >>> reader.logits(reader.states(1), layer=1, candidates=torch.tensor([5, 6, 7])).shape
    torch.Size([4, 2, 3])
    """

    def __init__(
        self, model: HookedModel, tokens: Int[Tensor, " item"], convention: Convention
    ) -> None:
        """Read `tokens` as `convention` says; its candidates play no part here."""
        if reason := why_no_heads(model):
            raise NotApplicable(f"{model.provenance.checkpoint} has no OV circuits: {reason}.")
        self.model, self.tokens, self.convention = model, tokens.to(model.device), convention
        self.unembed, self._final = unembedding(model).weight, final_norm(model)
        with torch.no_grad():
            self._shown = _representations(model, self.tokens, convention.representation)

    def states(self, layer: int) -> Float[Tensor, "item d_model"]:
        """Return what stands for each token in front of the heads of `layer`."""
        return self._shown.in_block_0 if layer == 0 else self._shown.later

    @torch.no_grad()
    def logits(
        self,
        states: Float[Tensor, "state d_model"],
        layer: int,
        candidates: Int[Tensor, " candidate"],
        *,
        head: int | None = None,
    ) -> Float[Tensor, "head state candidate"]:
        """Return the logits that the heads of `layer` give the tokens `candidates`, in float32.

        Args:
            states: what the heads read, before the LayerNorm of their layer.
            layer: of the heads.
            candidates: token ids.
            head: one of them alone; None takes all.
        """
        heads = slice(None) if head is None else slice(head, head + 1)
        *left, last = self._factors(states, layer, heads)
        written = self._final_norm(left[0] @ last).float() if left else last
        return written @ self.unembed[:, candidates.to(states.device)].float()

    def _factors(
        self, states: Float[Tensor, "state d_model"], layer: int, heads: slice = slice(None)
    ) -> tuple[Float[Tensor, "head _ _"], ...]:
        """Matrices whose product is what each head writes for each state, in float32.

        Without biases they are two and the final LayerNorm is still to come; with biases it is in
        the one matrix there is.
        """
        own, normed = head_weights(self.model, layer), self.convention.layer_norm
        read = norm_before(self.model, layer)(states) if normed else states
        weight, output = own.value[heads], own.output[heads]
        behind = norm_behind(self.model, layer, "attn")
        # One product for all heads: d_model by (head d_head).
        together = read @ weight.transpose(0, 1).flatten(1)
        value = together.unflatten(1, weight.shape[::2]).transpose(0, 1)  # head state d_head
        if not self.convention.biases:
            # A norm behind attention is linear up to a positive scale too.
            return value.float(), (behind.linear(output) if normed else output).float()
        value = value + own.value_bias[heads][:, None]
        written = value @ output + own.output_bias
        return (self._final_norm(behind(written) if normed else written).float(),)

    def _final_norm(
        self, written: Float[Tensor, "head state d_model"]
    ) -> Float[Tensor, "head state d_model"]:
        """A write through the final LayerNorm, with its bias or without."""
        if not self.convention.layer_norm:
            return written
        if self.convention.biases:
            return self._final(written)
        return self._final.linear(written) / self._final.scale(written)


class _Contest(NamedTuple):
    """Candidates that compete for the same items."""

    items: slice
    pool: Int[Tensor, " candidate"]
    """Token ids."""

    columns: Float[Tensor, "d_model candidate"]
    """Turns what a head writes into logits, up to a positive factor per item."""

    logits: Float[Tensor, "item candidate"]
    """Where those of one head after another are made: fresh memory for each would cost as much as
    the product."""


def _contests(reader: OVReader, classes: Mapping[str, OrdinalClass]) -> list[_Contest]:
    """One contest per class, or one of all items where the candidates are the same for all."""
    unembed, tokens, convention = reader.unembed, reader.tokens, reader.convention
    pools: list[tuple[slice, Tensor]] = []
    if convention.candidates == "vocab":
        pools.append((slice(None), torch.arange(unembed.shape[1], device=tokens.device)))
    elif convention.candidates == "ordinal":
        pools.append((slice(None), tokens.unique()))
    else:
        start = 0
        for ordinal in classes.values():
            items = slice(start, start + len(ordinal))
            targets = ordinal.pairs(1)[:, 1].unique().to(tokens.device)
            own = tokens[items]
            pools.append((items, own if convention.candidates == "class" else own[targets]))
            start = items.stop
    columns = [unembed[:, pool].float() for _, pool in pools]
    if convention.layer_norm and not convention.biases:
        norm = reader._final.linear(torch.eye(len(unembed), device=unembed.device))
        columns = [norm @ column for column in columns]
    return [
        _Contest(items, pool, column, column.new_empty(len(tokens[items]), len(pool)))
        for (items, pool), column in zip(pools, columns, strict=True)
    ]


def _winning_tokens(factors: tuple[Tensor, ...], contest: _Contest) -> Int[Tensor, "head item"]:
    """Token with the highest logit; -1 where none has it alone."""
    logits, won = contest.logits, []
    for rows, columns in zip(*_two_factors(factors, contest), strict=True):
        torch.mm(rows, columns, out=logits)
        index = _argmax(logits)
        top = logits.gather(-1, index[:, None])[:, 0]
        rest = logits.scatter_(-1, index[:, None], -torch.inf).amax(-1)
        alone = (rest < top) & (len(contest.pool) > 1)
        won.append(torch.where(alone, contest.pool[index], -1))
    return torch.stack(won)


def _two_factors(
    factors: tuple[Tensor, ...], contest: _Contest
) -> tuple[list[Tensor], list[Tensor]]:
    """By head, two matrices whose product are the logits, in whichever order costs less."""
    rows, columns = factors[0][:, contest.items], contest.columns
    if len(factors) == 1:
        return list(rows), [columns] * len(rows)
    (heads, items, k), (d, pool) = rows.shape, columns.shape
    if k * pool * (d + items) > items * d * (k + pool):
        return list(rows @ factors[1]), [columns] * heads
    folded = factors[1].reshape(heads * k, d) @ columns  # of all heads in one product
    return list(rows), list(folded.reshape(heads, k, pool))


def _argmax(logits: Float[Tensor, "item candidate"]) -> Int[Tensor, " item"]:
    """Where the largest logit of each row is."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # numpy's search takes a fifth of torch's time on a CPU.
    return torch.from_numpy(logits.numpy().argmax(-1))


def _are_nonzero(factors: tuple[Float[Tensor, "head _ _"], ...]) -> Bool[Tensor, " head"]:
    """Whether each head's product is other than zero; terms that happen to cancel aside."""
    reached = factors[0].abs().amax(1)
    for factor in factors[1:]:
        reached = (factor * (reached != 0)[..., None]).abs().amax(1)
    return (reached != 0).any(-1)


class _Shown(NamedTuple):
    """What stands for each item in front of a head, [item d_model]."""

    in_block_0: Tensor
    later: Tensor


def _representations(
    model: HookedModel, tokens: Int[Tensor, " item"], representation: Representation
) -> _Shown:
    """A head of block 0 reads the stream before that block, whose output it can never see."""
    embedded = embedding(model)[tokens]
    if representation == "embed":
        return _Shown(embedded, embedded)
    if representation == "mlp_0_raw":  # for every head, as published
        raw = mlp_alone(model, 0, embedded)
        return _Shown(raw, raw)
    prompt = tokens[:, None]
    if model.provenance.prepend_bos:
        bos = torch.full_like(prompt, model.require_tokenizer().bos_token_id)
        prompt = torch.cat([bos, prompt], dim=1)
    later = {"resid_post_0": "hook_resid_post", "mlp_out_0": "hook_mlp_out"}[representation]
    names = ("blocks.0.hook_resid_pre", f"blocks.0.{later}")
    read = activations(model, prompt, names)
    return _Shown(*(read[name][:, -1].to(tokens.device) for name in names))
