"""How well do a head's OV circuit, or the answers of the whole model, follow the order of ordinal classes?

`scores` holds the score of every head, `writes` the logits of one head, `states` the states in front of it, put together from
those of other items, `answers` the prompts that ask for a successor and what the model says to them, `items` what all share.
"""

from mechinterp_toolkit.succession.answers import (
    answer_estimate,
    attention_to_items,
    class_logits,
    item_units,
    of_class,
    right_answer,
    shuffled_prompts,
    successor_prompts,
)
from mechinterp_toolkit.succession.items import centred, chosen, winners
from mechinterp_toolkit.succession.scores import HeadScores, hits, macro_average, orders, score_heads, shuffled_hits
from mechinterp_toolkit.succession.states import (
    ItemStates,
    exchange_residues,
    place_and_class,
    predicted_successors,
    study_states,
)
from mechinterp_toolkit.succession.writes import (
    ClassMatrix,
    HeadWrites,
    class_matrices,
    cross_class_score,
    logit_by_distance,
    order_bias,
    study_writes,
    successors_across,
)

__all__ = [
    "ClassMatrix",
    "HeadScores",
    "HeadWrites",
    "ItemStates",
    "answer_estimate",
    "attention_to_items",
    "centred",
    "chosen",
    "class_logits",
    "class_matrices",
    "cross_class_score",
    "exchange_residues",
    "hits",
    "item_units",
    "logit_by_distance",
    "macro_average",
    "of_class",
    "order_bias",
    "orders",
    "place_and_class",
    "predicted_successors",
    "right_answer",
    "score_heads",
    "shuffled_hits",
    "shuffled_prompts",
    "study_states",
    "study_writes",
    "successor_prompts",
    "successors_across",
    "winners",
]
