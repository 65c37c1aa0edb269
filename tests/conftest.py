"""Settings and fixtures shared by all tests: offline, one thread, nothing sent to anyone."""

from __future__ import annotations

import os

# Read once by transformers, datasets, tqdm and wandb, so set before anything imports them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # `HF_HUB_OFFLINE=0 pytest -m network` lifts it
os.environ["TQDM_DISABLE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for what tests start: threads of several workers only wait

import builtins
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch

torch.set_num_threads(1)

# No test is timed, and a failure that depends on the day's random examples could not be looked
# into.
hypothesis.settings.register_profile("toolkit", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("toolkit")

ROOT = Path(__file__).resolve().parent.parent


LONGEST = ("test_suite.py", "test_end_to_end.py", "test_recipes.py", "analyses", "test_plugin.py")
"""Files that take longest, begun first, so that no worker is left alone with one at the end."""

WITHOUT_LENS = (
    "geometry/",
    "groups/",
    "prompts/test_corpora.py",
    "prompts/test_ordinal_classes.py",
    "prompts/test_prompt_set.py",
    "prompts/test_succession.py",
    "test_accumulate.py",
    "test_constraints.py",
    "test_files.py",
    "test_results.py",
    "test_stats.py",
    "test_storage.py",
    "test_tables.py",
)
"""What no version of TransformerLens can change, since it is never imported there: `--one-line`
leaves it out of the second environment."""


def lies_in(item: pytest.Item, places: tuple[str, ...]) -> bool:
    """Whether the file of a test is one of `places`, or in one."""
    return item.path.relative_to(ROOT / "tests").as_posix().startswith(places)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-line",
        action="store_true",
        help="leave out the tests that no version of TransformerLens can change",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as there are cores, up to four; none for a single file, which starts sooner so."""
    if len(config.args) == 1 and ".py" in config.args[0]:
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest; skip what needs sae-lens where it is not installed."""
    items.sort(key=lambda item: [not lies_in(item, (place,)) for place in LONGEST])
    if config.getoption("--one-line"):
        left_out = [
            item
            for item in items
            if lies_in(item, WITHOUT_LENS) or item.get_closest_marker("error_rate")
        ]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if importlib.util.find_spec("sae_lens") is None:
        skip = pytest.mark.skip(
            reason='sae-lens is not installed: pip install -c constraints.txt -e ".[sae]"'
        )
        for item in items:
            if item.get_closest_marker("sae"):
                item.add_marker(skip)


@contextmanager
def lens_refused() -> Iterator[None]:
    """Let nothing import TransformerLens, not even where it has been imported before."""
    real = builtins.__import__

    def refusing(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "transformer_lens":
            raise AssertionError(
                "this test lies in WITHOUT_LENS of tests/conftest.py and imports TransformerLens"
            )
        return real(name, *args, **options)

    builtins.__import__ = refusing
    try:
        yield
    finally:
        builtins.__import__ = real


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold WITHOUT_LENS to its word."""
    if not lies_in(item, WITHOUT_LENS):
        return (yield)
    with lens_refused():
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real tokenizers and text (`tokenizers/`, `ud_ewt/`), kept beside the checkout and
    not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data beside the checkout")
    return folder


@pytest.fixture
def as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the checks of shapes and types that only tests make, which would speak before our
    own errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def word_tokenizer(d_vocab: int) -> Any:
    """Return a word-level tokenizer: three special tokens, then w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<bos>", *(f"w{i}" for i in range(3, d_vocab))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<bos>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def random_hf_model(shape: str, seed: int = 0) -> Any:
    """Return a small Hugging Face model with every weight random, LayerNorm gains and biases
    included."""
    import transformers as hf

    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 60}
    wide = {**size, "intermediate_size": 72, "max_position_embeddings": 48}
    torch.manual_seed(seed)
    if shape == "gpt2":  # n_inner other than 4 d_model, which published config readers ignore
        config = hf.GPT2Config(
            n_layer=2, n_head=4, n_embd=32, n_inner=72, vocab_size=60, n_positions=48
        )
        model = hf.GPT2LMHeadModel(config)
    elif shape == "neox":
        model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**wide))
    else:
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**wide))
    with (
        torch.no_grad()
    ):  # fresh LayerNorms are ones and zeros, and would hide a forgotten gain or bias
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def hf_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders written by `save_pretrained`: "gpt2", "neox" and "llama" shapes, random weights,
    word-level tokenizer."""
    folders = {}
    for shape in ("gpt2", "neox", "llama"):
        folders[shape] = tmp_path_factory.mktemp(shape)
        random_hf_model(shape).save_pretrained(folders[shape])
        word_tokenizer(60).save_pretrained(folders[shape])
    return folders


@pytest.fixture(
    scope="session",
    params=[
        "gpt2-HookedTransformer",
        "gpt2-TransformerBridge",
        "neox-HookedTransformer",
        "neox-TransformerBridge",
        "llama-TransformerBridge",
    ],
)
def wrapped(request: pytest.FixtureRequest, hf_folders: dict[str, Path]) -> Any:
    """Each shape on each wrapper that the installed TransformerLens has, as a `HookedModel`."""
    from mechinterp_toolkit.model import has_hooked_transformer, load_model

    shape, wrapper = request.param.split("-")
    if wrapper == "HookedTransformer" and not has_hooked_transformer():
        pytest.skip("this TransformerLens has no HookedTransformer")
    return load_model(hf_folders[shape], wrapper=wrapper)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Token ids [4, 7] for the folders above."""
    return torch.randint(3, 60, (4, 7), generator=torch.Generator().manual_seed(1))
