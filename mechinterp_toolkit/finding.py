"""What every analysis answers with: a `Finding`, of which an author writes two things.

A finding is a frozen dataclass in the file or folder of its analysis. It stores numbers; its
verdicts are properties of those numbers, so a threshold stays visible and can be read again later.
The two things are an `Estimate` with its control, larger meaning more, and `smallest_effect`. The
verdict, the places, the sentences and the pictures follow from them; a subclass writes its own
where it knows more, and has to for `used`, which takes an edit.

What would fool the defaults: a control that destroys more than the claimed structure, or draws for
which the search was not repeated. Both are the author's to know.
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mechinterp_toolkit import plots
from mechinterp_toolkit.errors import ResultError
from mechinterp_toolkit.results import Estimate, Provenance, Row, Verdict
from mechinterp_toolkit.stats import judge_effect


@dataclass(frozen=True)
class Finding:
    """Base of every result: the two verdicts, what they rest on, and how a reader sees them.

    A subclass is a frozen dataclass of tensors, `Estimate`s, plain data and small dataclasses. Its
    first estimate is the headline, on which every default below rests.

    >>> import torch
    >>> @dataclass(frozen=True)
    ... class Heads(Finding):
    ...     score: Estimate
    ...     smallest_effect = 0.5
    >>> score, control = torch.tensor([[0.1, 0.9]]), torch.zeros(19, 1, 2)
    >>> finding = Heads(
    ...     Estimate(score, score - 0.1, score + 0.1, 32, "share", "by hand", control, "shuffled",
    ...     ("layer", "head"))
    ... )
    >>> finding.locations
    ('0.1',)
    >>> finding.represented.outcome
    'found'
    """

    provenance: Provenance | None = field(default=None, kw_only=True, repr=False)
    """Model and run behind this finding; filled in by the registry."""

    prompts_hash: str | None = field(default=None, kw_only=True)
    """Hash of the token ids that were run, or None for an analysis of weights alone."""

    smallest_effect: ClassVar[float | None] = None
    """The smallest effect of interest, in the unit of the headline: what is surely smaller is not
    found, and what may be is undecided. Needed unless `represented` is written anew; without it
    `locations` has to be too."""

    fields_version: ClassVar[int] = 1
    """Raise it where a field changes its meaning or kind, so that results saved before are refused
    instead of misread. A field that is new, gone or renamed is noticed without it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.represented is Finding.represented and cls.smallest_effect is None:
            raise ResultError(
                f"{cls.__name__} does not say from where on an effect is of interest; write"
                " `smallest_effect = ...` in the class, in the unit of its first estimate, or a"
                " `represented` of its own."
            )

    @property
    def represented(self) -> Verdict:
        """Whether the structure is there: the effect against its control and the smallest one.

        The p-value is that of the largest value over all places (maximum statistic), so looking at
        many of them finds no more. `stats.judge_effect` has the rule.
        """
        effect = self.effect
        if effect is None:
            return Verdict("undecided", "Nothing could be measured.")
        if effect.control is None:
            return Verdict(
                "undecided", f"{self._sentence(effect)}, with no control to compare it with."
            )
        assert self.smallest_effect is not None
        return judge_effect(effect, self._sentence(effect), "the control", self.smallest_effect)

    @property
    def used(self) -> Verdict:
        """Whether the model's answers depend on it."""
        return Verdict(
            "undecided", "Nothing was edited, so whether the model's answers depend on it is open."
        )

    @property
    def effect(self) -> Estimate | None:
        """The scalar headline of the verdict table; None where nothing could be measured.

        Of several values it is that of the strongest place that passes, and else the largest; its
        control is then the largest of each draw.
        """
        headline, index = self._headline(), self._strongest()
        if headline is None or index is None:
            return None
        return headline.at(*index, largest=True) if index else headline

    @property
    def locations(self) -> tuple[str, ...]:
        """Where it is (heads, irreps, hook points), strongest first; empty where nothing passes."""
        headline = self._headline()
        return () if headline is None else tuple(headline.place(*at) for at in self._passing())

    def answer(self) -> str:
        """One or two sentences a reader can quote, with number, interval, n and control."""
        text, effect, places = self.represented.reason, self.effect, self.locations
        if effect is not None and effect.control is not None:
            text += f" Control: {effect.control_text()}."
        if len(places) > 1:
            more = f" and {len(places) - 8} more" if len(places) > 8 else ""
            text += f" {len(places)} places pass: {', '.join(places[:8])}{more}."
        return text

    def causal_check(self) -> str:
        """What was edited where, what the answer did, what the scrambled edit did."""
        return "None was made: this analysis reads and edits nothing."

    @property
    def caveats(self) -> tuple[str, ...]:
        """What this run cannot say: power, tokens dropped, hooks missing."""
        headline, own_rule = self._headline(), type(self).represented is not Finding.represented
        if headline is None or headline.value.numel() < 2 or own_rule:
            return ()
        return (
            f"The strongest of {headline.value.numel()} places was chosen after looking at all of"
            " them: the p-value is corrected for that, the interval is not.",
        )

    def __str__(self) -> str:
        """Everything in words, in lines of at most 100 characters: `print(finding)`."""
        sentences = (self.answer(), self.causal_check(), *self.caveats)
        verdicts = {"represented": self.represented, "used": self.used}
        short = [
            # a reason that the sentences repeat is said once
            f"{name} {verdict}".removesuffix(
                f": {verdict.reason}" if verdict.reason in "\n".join(sentences) else ""
            )
            for name, verdict in verdicts.items()
        ]
        return "\n\n".join(
            textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)
            for part in (*short, *sentences)
        )

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every estimate stored in a field, by field name."""
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in stored.items() if isinstance(value, Estimate)}

    def rows(self) -> list[Row]:
        """Return every estimate as tidy rows (one value per row), ready for a data frame."""
        return [row for name, estimate in self.estimates.items() for row in estimate.rows(name)]

    def figures(self) -> dict[str, plots.Figure]:
        """Return title -> plotly figure: every estimate over its null, and the strongest place."""
        stored, effect, drawn = self.estimates, self.effect, dict[str, Estimate]()
        for name, estimate in stored.items():
            spoken = name.replace("_", " ")
            along = f" by {' and '.join(estimate.axes)}" if estimate.axes else ""
            drawn[f"{spoken.capitalize()}{along}"] = estimate
            in_a_field = any(effect is other for other in stored.values())
            if estimate is self._headline() and effect is not None and not in_a_field:
                derived = type(self).effect is Finding.effect
                subject = f"strongest {spoken}" if derived else "headline"
                drawn[f"The {subject} over its control"] = effect
        figures = {title: plots.picture(shown, title=title) for title, shown in drawn.items()}
        return {title: figure for title, figure in figures.items() if figure is not None}

    def _headline(self) -> Estimate | None:
        """The estimate in the first field that is made for one; None where that one is empty."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if "Estimate" in str(f.type) and isinstance(value, Estimate | None):
                return value
        return None

    def _passing(self) -> list[tuple[int, ...]]:
        """Places of the headline beyond the control and surely of interest, strongest first."""
        headline, smallest = self._headline(), self.smallest_effect
        if headline is None or headline.control is None or smallest is None:
            return []
        if not headline.axes or not headline.value.numel():
            return []
        passes = (headline.p() <= 0.05) & (headline.low >= smallest).cpu()
        places: list[tuple[int, ...]] = [tuple(index) for index in passes.nonzero().tolist()]
        return sorted(places, key=lambda index: -float(headline.value[index]))

    def _strongest(self) -> tuple[int, ...] | None:
        """The first passing place, else that of the largest value; `()` for a scalar headline."""
        headline = self._headline()
        if headline is None or not headline.value.numel():
            return None
        if passing := self._passing():
            return passing[0]
        largest = np.unravel_index(int(headline.value.argmax()), headline.value.shape)
        return tuple(int(i) for i in largest)

    def _sentence(self, effect: Estimate) -> str:
        """What the headline came to, without a full stop."""
        headline, index = self._headline(), self._strongest()
        name = next(key for key, value in self.estimates.items() if value is headline)
        number = f"{name.replace('_', ' ')} is {effect.text()} ({effect.unit}; n = {effect.n})"
        if not index or headline is None:
            return f"The {number}"
        axes = "layer.head " if headline.axes == ("layer", "head") else ""
        place = f"{axes}{headline.place(*index)}"
        return f"At {place}, the strongest of {headline.value.numel()}, the {number}"
