"""Text to tokens: prompt sets, ordinal classes, running text, labelled words."""

from mechinterp_toolkit.prompts.ordinal_classes import (
    ORDINAL_CLASSES,
    STANDARD_CLASSES,
    Dropped,
    OrdinalClass,
    OrdinalTokens,
    OrdinalWords,
    Shared,
    has_ordinal_tokens,
    ordinal_class,
    ordinal_classes,
)
from mechinterp_toolkit.prompts.prompt_set import (
    PromptSet,
    build_prompts,
    hash_tokens,
)
from mechinterp_toolkit.prompts.succession import succession_prompts
