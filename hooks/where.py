"""Which tokens does an edit act on? The same with and without a KV cache, alone and in a batch.

Three masks are separate: tokens of the prompt, generated tokens, and explicit positions. Positions
are counted in real tokens of the row, from 0, so that padding and what a cache holds change
nothing. Padding is never edited, and the beginning-of-sequence token only where asked: its norm is
10 to 100 times that of other tokens.

What would fool it: an edit of "the last position". While tokens are generated without a cache that
is another token in every pass, with a cache it is every token. So it cannot be asked for here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import HookError
from mechinterp_toolkit.intervention import Edit, Site


@dataclass(frozen=True, eq=False)
class Where:
    """The tokens an edit acts on: all that every field allows.

    >>> padded = torch.tensor([[-1, 0, 1, 2]])  # one column of padding, and three tokens
    >>> site = Site("blocks.0.hook_resid_pre", order=padded)
    >>> Where(positions=(1,), bos=True).chosen(torch.zeros(1, 4, 8), hook=site)
    tensor([[False, False,  True, False]])
    """

    prompt: bool = True
    """Whether tokens of the prompt are edited."""

    generated: bool = True
    """Whether tokens behind the prompt are edited."""

    positions: tuple[int, ...] | Int[Tensor, "batch chosen"] | None = None
    """These alone: places among the real tokens of a row, from 0; -1 is the last token of the
    prompt. A tensor has its own places for each row. None allows all."""

    bos: bool = False
    """Whether a beginning-of-sequence token is edited too."""

    group: int | None = None
    """This row group alone (see `applied`); None allows all."""

    def __post_init__(self) -> None:
        if not (self.prompt or self.generated):
            raise HookError(
                "Where(prompt=False, generated=False) leaves no token to edit; allow one of them."
            )

    @property
    def everything(self) -> bool:
        """Whether nothing is left out, so that nothing needs to be known about the tokens."""
        tokens = self.prompt and self.generated and self.bos
        return tokens and self.positions is None and self.group is None

    def chosen(
        self, activation: Float[Tensor, "batch pos *rest"], hook: Any
    ) -> Bool[Tensor, "batch pos"]:
        """Return which tokens of the activation are edited.

        Raises:
            HookError: something asked for is not known at this site, the activation has no position
                axis, or a prompt alone is to be edited and no token of it is chosen.
        """
        site, order = _site(activation, hook)
        chosen = order >= 0
        if not (self.prompt and self.generated):
            chosen = chosen & (site.generated.to(order.device) == self.generated)
        if not self.bos:
            chosen = chosen & ~_known(site.bos, "the beginning-of-sequence token", _BOS, site)
        if self.positions is not None:
            chosen = chosen & self._at_positions(order, site)
        if self.group is not None:
            group = _known(site.group, "row groups", "run it inside applied(..., group=...)", site)
            chosen = chosen & (group == self.group)[:, None]
        # Only where a pass begins with the prompt: behind a cache there is no token of it.
        begins = site.positions is not None and int(site.positions[0]) == 0
        if not self.generated and begins and not chosen.any():
            raise HookError(
                f"{self} chooses no token of the prompt at {site.name!r}; see its positions."
            )
        return chosen

    def apply(
        self,
        activation: Float[Tensor, "batch pos *rest"],
        edited: Float[Tensor, "batch pos *rest"],
        hook: Any,
    ) -> Float[Tensor, "batch pos *rest"]:
        """Return `edited` at the chosen tokens and `activation`, bit for bit, elsewhere.

        Errors are those of `chosen`.
        """
        if self.everything and getattr(hook, "mask", None) is None:
            return edited
        return _chosen(self.chosen(activation, hook), edited, activation)

    def _at_positions(self, order: Tensor, site: Site) -> Tensor:
        given = self.positions
        rows = torch.tensor(given)[None] if isinstance(given, tuple) else given
        assert rows is not None
        if len(rows) not in (1, len(order)):
            raise HookError(
                f"positions are given for {len(rows)} rows, but {len(order)} run at {site.name!r}."
            )
        rows = rows.to(order.device)
        if bool((rows < 0).any()):
            remedy = "run it inside applied(..., prompt_length=...)"
            length = _known(site.prompt_tokens, "the prompt's end", remedy, site)
            rows = torch.where(rows < 0, length[:, None] + rows, rows)
        return (order[:, :, None] == rows[:, None]).any(2)


def only_at(chosen: Bool[Tensor, "batch pos"], edit: Edit) -> Edit:
    """Return the edit acting on the chosen tokens of this very batch alone.

    The activation is left bit for bit elsewhere.

    >>> edit = only_at(torch.tensor([[False, True]]), lambda activation, hook: activation + 5)
    >>> edit(torch.zeros(1, 2, 1), hook=Site("blocks.0.hook_resid_pre")).tolist()
    [[[0.0], [5.0]]]
    """

    def edited(
        activation: Float[Tensor, "batch pos *rest"], hook: Site
    ) -> Float[Tensor, "batch pos *rest"]:
        if activation.shape[:2] != chosen.shape:
            raise HookError(
                f"tokens were chosen for {tuple(chosen.shape)} [batch pos], but"
                f" {tuple(activation.shape[:2])} run at {hook.name!r}; run the very batch they were"
                " chosen in, without a KV cache."
            )
        return _chosen(chosen.to(activation.device), edit(activation, hook=hook), activation)

    return edited


EVERYTHING = Where(bos=True)
"""Every real token, the beginning of the sequence included."""

_BOS = "give the model its tokenizer and token ids, or edit the first token too (bos=True)"


def _chosen(chosen: Tensor, edited: Tensor, activation: Tensor) -> Tensor:
    """`edited` at the chosen tokens [batch pos], whatever axes lie behind them."""
    tokens = chosen.reshape(*chosen.shape, *[1] * (activation.dim() - chosen.dim()))
    return torch.where(tokens, edited, activation)


def _site(activation: Tensor, hook: Any) -> tuple[Site, Tensor]:
    if not isinstance(hook, Site):
        name = getattr(hook, "name", "a hook point")
        raise HookError(
            f"the edit at {name!r} acts on some tokens only; run it inside applied(...), which"
            " knows them."
        )
    order = _known(hook.order, "the tokens", "use a model that reads tokens [batch pos]", hook)
    # Scores and patterns are [batch head pos pos], which looks like tokens where there are as many.
    between_tokens = hook.name.endswith(("hook_pattern", "hook_attn_scores"))
    if activation.shape[:2] != order.shape or between_tokens:
        raise HookError(
            f"{hook.name!r} has shape {tuple(activation.shape)}, expected [batch pos ...] with"
            f" {tuple(order.shape)} in front; edit an activation that has one entry per token."
        )
    return hook, order


def _known(what: Tensor | None, name: str, remedy: str, site: Site) -> Tensor:
    if what is None:
        raise HookError(
            f"the edit at {site.name!r} asks for {name}, which is not known here; {remedy}."
        )
    return what
