"""What can be asked of a model about numbers, and which number must be changed to move the answer?

`addition_task` asks "a + b =", `succession_task` for the number that comes next. Each knows, prompt
by prompt, what would be right if the number at one position were another one.

What would fool it: numbers of several tokens share digits, so only single tokens are asked; a model
that answers few prompts right moves for other reasons than arithmetic, so its accuracy is to be
said first.

Source: prompts in the manner of Kantamneni and Tegmark 2025, arXiv:2502.00873; succession as in
Gould et al. 2024, arXiv:2312.09230.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp_toolkit.errors import NotApplicable, TokenisationError
from mechinterp_toolkit.model import HookedModel
from mechinterp_toolkit.prompts import (
    OrdinalClass,
    PromptSet,
    build_prompts,
    ordinal_class,
    succession_prompts,
)

FEWEST = 20
"""Numbers below which neither periods nor a helix can be told from a smooth curve."""


@dataclass(frozen=True, eq=False)
class NumberTask:
    """Prompts with a number at a known position, and what is right for other numbers there."""

    name: str
    """"addition" or "succession"."""

    prompts: PromptSet
    """The prompts; `item_position` is where the number stands."""

    number: Int[Tensor, " batch"]
    """The number there."""

    second: Int[Tensor, " batch"] | None
    """The number it is added to; None for succession."""

    numbers: Int[Tensor, " value"]
    """Every value of `number`, rising."""

    answers: Int[Tensor, "batch value"]
    """Token that is right if the number were each of `numbers`."""

    candidates: Int[Tensor, " candidate"]
    """Tokens of all numbers the model knows: the answer is the highest among them."""

    @property
    def at(self) -> Int[Tensor, " batch"]:
        """Position of the number."""
        assert self.prompts.item_position is not None
        return self.prompts.item_position

    @property
    def which(self) -> Int[Tensor, " batch"]:
        """Place of each prompt's number among `numbers`."""
        return torch.searchsorted(self.numbers, self.number)

    def logits(self, model: HookedModel) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits where the answer is asked, float64 on the CPU."""
        return self.prompts.where_asked(model.logits(self.prompts.tokens, self.prompts.mask))

    def right(
        self, logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return 1 where the answer, the prompt's own by default, is highest of all numbers."""
        answer = self.answers.gather(1, self.which[:, None])[:, 0] if answer is None else answer
        among = logits[:, self.candidates]
        own = logits.gather(1, answer[:, None])
        return ((among >= own).sum(1) == 1).double()

    def select(self, rows: Bool[Tensor, " batch"]) -> NumberTask:
        """Return some of the prompts; the values of `number` that are asked about stay."""
        return replace(
            self,
            prompts=self.prompts.select(rows),
            number=self.number[rows],
            second=None if self.second is None else self.second[rows],
            answers=self.answers[rows],
        )


def number_tokens(model: HookedModel, largest: int = 199) -> OrdinalClass:
    """Return the numbers 0 to `largest` that are one token behind a space; `index` is the number.

    Raises:
        NotApplicable: fewer than `FEWEST` are, or the tokenizer has tokens that the model lacks.

    >>> from mechinterp_toolkit.model import load_model
    >>> number_tokens(load_model("toy/addition-mod"), 58).index[-3:].tolist()
    [56, 57, 58]
    """
    words = [str(n) for n in range(largest + 1)]
    known = ordinal_class(model.require_tokenizer(), "numbers", words, cyclic=False)
    checkpoint = model.provenance.checkpoint
    if len(known) < FEWEST:
        why = "".join(f": {gone.word!r}: {gone.reason}" for gone in known.dropped[:1])
        raise NotApplicable(
            f"{checkpoint} has {len(known)} of the numbers 0 to {largest} as one token, {FEWEST}"
            f" are needed{why}."
        )
    if int(known.tokens.max()) >= model.cfg.d_vocab:
        raise NotApplicable(
            f"the tokenizer of {checkpoint} has numbers the model has no embedding for."
        )
    return known


def addition_task(
    model: HookedModel,
    known: OrdinalClass,
    *,
    modulus: int | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> NumberTask | None:
    """Return "a + b =" for every a whose sums are known, each with several b.

    None where they cannot be asked: the tokenizer does not know the signs, or too few numbers.

    Args:
        model: whose tokenizer reads.
        known: from `number_tokens`.
        modulus: answers are (a + b) mod this; None for plain sums.
        repeats: values of b per a.
        seed: of the values of b.

    >>> from mechinterp_toolkit.model import load_model
    >>> model = load_model("toy/addition-mod")
    >>> task = addition_task(model, number_tokens(model, 58), modulus=59, repeats=1)
    >>> task.prompts.texts[7], task.name
    (' 7 + 47 =', 'addition mod 59')
    """
    token_of = dict(zip(known.index.tolist(), known.tokens.tolist(), strict=True))
    limit = max(token_of) // 2 + 1 if modulus is None else modulus
    operands = [n for n in range(limit) if n in token_of]
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (a, operands[int(i)])
        for a in operands
        for i in torch.randint(len(operands), (repeats,), generator=generator)
    ]

    def answer(a: int, b: int) -> int:
        return a + b if modulus is None else (a + b) % modulus

    known_sums = all(answer(a, b) in token_of for a in operands for b in operands)
    if len(operands) < FEWEST or not known_sums:
        return None
    try:
        prompts = build_prompts(
            model.require_tokenizer(),
            [f" {a} + {b} =" for a, b in pairs],
            [f" {answer(a, b)}" for a, b in pairs],
            prepend_bos=bool(model.provenance.prepend_bos),
            item_words=[(str(a), 0) for a, _ in pairs],
        )
    except TokenisationError:
        return None
    return NumberTask(
        name="addition" if modulus is None else f"addition mod {modulus}",
        prompts=prompts,
        number=torch.tensor([a for a, _ in pairs]),
        second=torch.tensor([b for _, b in pairs]),
        numbers=torch.tensor(operands),
        answers=torch.tensor([[token_of[answer(a, b)] for a in operands] for _, b in pairs]),
        candidates=known.tokens,
    )


def succession_task(
    model: HookedModel, known: OrdinalClass, *, repeats: int = 5, seed: int = 0
) -> NumberTask | None:
    """Return prompts that ask for the number after the one shown last; None where none can be made.

    >>> from mechinterp_toolkit.model import load_model
    >>> model = load_model("toy/ordinal")
    >>> task = succession_task(model, number_tokens(model))
    >>> task.numbers[:3].tolist(), bool(task.right(task.logits(model)).all())
    ([1, 2, 3], True)
    """
    from mechinterp_toolkit.toys import asks_by_query, successor_queries

    tokenizer = model.require_tokenizer()
    if int(torch.isin(known.index + 1, known.index).sum()) < FEWEST:
        return None
    try:
        if asks_by_query(tokenizer):
            sets = [
                successor_queries(tokenizer, {"numbers": known}, seed=1000 * seed + r)
                for r in range(repeats)
            ]
        else:
            bos = bool(model.provenance.prepend_bos)
            sets = [succession_prompts(tokenizer, {"numbers": known}, prepend_bos=bos, length=3)]
    except TokenisationError:
        return None
    prompts = PromptSet.joined(sets)
    assert prompts.item is not None
    values = prompts.item.unique()
    token_of = dict(zip(known.index.tolist(), known.tokens.tolist(), strict=True))
    return NumberTask(
        name="succession",
        prompts=prompts,
        number=prompts.item,
        second=None,
        numbers=values,
        answers=torch.tensor([token_of[int(v) + 1] for v in values]).expand(len(prompts), -1),
        candidates=known.tokens,
    )
