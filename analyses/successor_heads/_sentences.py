"""What the numbers of `successor_heads` say: its verdicts, and sentences a reader can quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechinterp_toolkit.analyses.successor_heads.scores import THRESHOLD
from mechinterp_toolkit.nulls import why_undecided
from mechinterp_toolkit.results import Verdict

if TYPE_CHECKING:
    from mechinterp_toolkit.analyses.successor_heads.finding import SuccessorHeads


def represented(finding: SuccessorHeads) -> Verdict:
    """Judge the best head against shuffled orders, and against half of the items."""
    if not finding.writes.any():
        return Verdict("not_applicable", "No head writes anything: every OV circuit is zero.")
    layer, head = finding.studied
    score, p = finding.score.at(layer, head), float(finding.p[layer, head])
    share = f"head {layer}.{head} maps {score.text()} of the items to their successor"
    assert score.control is not None
    if too_few := why_undecided(len(score.control)):
        return Verdict("undecided", too_few, p=p, smallest_effect=THRESHOLD)
    if finding.heads:
        reason = f"{share}, beyond every head of shuffled orders."
        return Verdict("found", reason, p=p, smallest_effect=THRESHOLD)
    if p <= 0.05 and score.high >= THRESHOLD:
        reason = f"{share}: beyond the null, but not surely at least half of them."
        return Verdict("undecided", reason, p=p, smallest_effect=THRESHOLD)
    short = "less than half of them"
    if p > 0.05:
        short = "no more than the best head of shuffled orders"
    if computed_elsewhere(finding):
        short += "; the model answers successor prompts all the same: computed, but not by a head"
    return Verdict("not_found", f"{share}, {short}.", p=p, smallest_effect=THRESHOLD)


def used(finding: SuccessorHeads) -> Verdict:
    """Judge what ablating the heads takes from right answers against shuffled ones."""
    if not finding.heads:
        return Verdict("not_applicable", "No successor head was found, so there is none to ablate.")
    if finding.logit_drop is None or finding.accuracy_drop is None:
        return Verdict(
            "not_applicable",
            "The model could not be asked for successors: see what this run cannot say.",
        )
    p = max(float(drop.p()) for drop in (finding.logit_drop, finding.accuracy_drop))
    heads, lost = ", ".join(finding.locations), finding.accuracy_drop.text()
    moved = f"mean-ablating {heads} takes {lost} of the accuracy"
    if p <= 0.05:
        return Verdict("found", f"{moved}, more than it takes from shuffled answers.", p=p)
    return Verdict("not_found", f"{moved}, no more than from shuffled answers.", p=p)


def computed_elsewhere(finding: SuccessorHeads) -> bool:
    """Whether the model answers, and no head does it."""
    behaviour = finding.behaviour
    if finding.heads or behaviour is None:
        return False
    return bool(behaviour.low > THRESHOLD) and float(behaviour.p()) <= 0.05


def answer(finding: SuccessorHeads) -> str:
    """Say what the best head maps items to, and in which classes."""
    layer, head = finding.studied
    score = finding.score.at(layer, head, largest=True)
    by_class = zip(finding.classes, finding.class_score[:, layer, head], strict=True)
    classes = ", ".join(f"{name} {share:.2f}" for name, share in by_class)
    back, same, _ = finding.profile[:, layer, head]
    assert score.control is not None
    text = (
        f"Head {layer}.{head} maps {score.text()} of {score.n} items to their successor"
        f" ({classes}), {back:.2f} to their predecessor and {same:.2f} to themselves; the best of"
        f" all heads reaches {score.control.quantile(0.95):.2f} in 5 % of shuffled orders."
    )
    if finding.heads:
        return f"{text} {len(finding.heads)} heads pass in all." if finding.heads[1:] else text
    if finding.behaviour is None or not computed_elsewhere(finding):
        return f"No successor head. {text}"
    return (
        f"Computed, but not by a head: the model answers {finding.behaviour.text()} of successor"
        f" prompts (shuffled answers {finding.behaviour.control_text()}), yet no head's OV circuit"
        f" does it. {text}"
    )


def causal_check(finding: SuccessorHeads) -> str:
    """Say what the model answers, and what it loses with the heads replaced."""
    behaviour, logit, accuracy = finding.behaviour, finding.logit_drop, finding.accuracy_drop
    if behaviour is None:
        return "The model could not be asked for successors, so nothing was edited."
    asked = (
        f"The model answers {behaviour.text()} of {behaviour.n} items' successor prompts right"
        " within class"
    )
    if logit is None or accuracy is None:
        return (
            f"{asked} (shuffled answers {behaviour.control_text()}). No head was found, so none was"
            " ablated."
        )
    return (
        f"{asked}. With head{'s' * (len(finding.heads) > 1)} {', '.join(finding.locations)}"
        f" replaced by the mean over these prompts, accuracy fell by {accuracy.text()} and the"
        f" right answer's logit, centred within its class, by {logit.text()}; shuffled answers' by"
        f" {logit.control_text()}.{_further_edits(finding)}"
    )


def _further_edits(finding: SuccessorHeads) -> str:
    text, states, pairs = "", finding.states, finding.pair_drop
    logit, accuracy = finding.resample_logit_drop, finding.resample_accuracy_drop
    if logit is not None and accuracy is not None:
        text += (
            f" With outputs of other prompts in their place, accuracy fell by {accuracy.text()} and"
            f" the logit by {logit.text()}; shuffled answers' by {logit.control_text()}."
        )
    if pairs is not None:
        most = int(pairs.value.argmax())
        text += (
            f" Of {len(pairs.value)} pairs of heads, {pairs.label('pair', most)} cover for each"
            f" other most: together they take {pairs.at(most).text()} logits beyond what each takes"
            " alone."
        )
    if states.steering is not None and states.steering_permuted is not None:
        text += (
            f" Exchanging n mod {states.steering_period} in the numbers, the best head follows"
            f" {states.steering.text()} of the exchanges; with residues permuted"
            f" {states.steering_permuted.mean():.2f}, otherwise {states.steering.control_text()}."
        )
    return text


def caveats(finding: SuccessorHeads) -> tuple[str, ...]:
    """Name the convention, heads that write nothing, and what was left out."""
    silent = [f"{layer}.{head}" for layer, head in (~finding.writes).nonzero().tolist()]
    unscored = [f"Heads {', '.join(silent)} write nothing and have no score."] if silent else []
    written = () if finding.written is None else finding.written.notes
    convention = f"Convention: {finding.convention}."
    return (convention, *unscored, *finding.notes, *written, *finding.states.notes)
