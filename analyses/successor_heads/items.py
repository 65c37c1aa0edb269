"""Where do the items of several classes stand in one list, and which of them do logits choose?

Whoever looks at all classes at once takes their items class after class, each class in the order of
its words.

What would fool it: items of two classes that are one token have the same logit, and equal logits
choose nothing; hence winners are sought among the items of one class.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp_toolkit.prompts import OrdinalClass


def places(classes: Mapping[str, OrdinalClass]) -> dict[str, slice]:
    """Return where the items of each class stand among those of all.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> places(ordinal_classes(build_tokenizer(), ("days", "months")).classes)
    {'days': slice(0, 7, None), 'months': slice(7, 19, None)}
    """
    place, start = {}, 0
    for name, ordinal in classes.items():
        place[name] = slice(start, start + len(ordinal))
        start += len(ordinal)
    return place


def item_tokens(classes: Mapping[str, OrdinalClass]) -> Int[Tensor, " item"]:
    """Return the token ids of the items of all classes.

    >>> from mechinterp_toolkit.prompts import ordinal_classes
    >>> from mechinterp_toolkit.toys.ordinal import build_tokenizer
    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(item_tokens(ordinal_classes(tokenizer, "days").classes)[:2])
    'Monday Tuesday'
    """
    return torch.cat([c.tokens for c in classes.values()])


def winners(logits: Float[Tensor, "item candidate"]) -> Int[Tensor, " item"]:
    """Return the position of the highest logit, -1 where several tie: equal logits choose nothing.

    >>> winners(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [1, -1]
    """
    alone = chosen(logits).bool()
    return torch.where(alone.any(1), alone.int().argmax(1), -1)


def chosen(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    """Return 1 where an item has the highest logit of its row, alone.

    >>> chosen(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    top = logits == logits.amax(1, keepdim=True)
    return (top & (top.sum(1, keepdim=True) == 1)).double()


def centred(logits: Float[Tensor, "prompt item"]) -> Float[Tensor, "prompt item"]:
    """Return logits minus the mean of their row.

    >>> centred(torch.tensor([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """
    return logits - logits.mean(1, keepdim=True)
