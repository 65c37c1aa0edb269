"""Settings and fixtures shared by all tests: offline, one thread, nothing sent to anyone."""

from __future__ import annotations

import os

# Read once by transformers, datasets, tqdm and wandb, so set before anything imports them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # `HF_HUB_OFFLINE=0 pytest -m network` lifts it
os.environ["TQDM_DISABLE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import importlib.util
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# No test is timed, and a failure that depends on the day's random examples could not be looked into.
hypothesis.settings.register_profile("toolkit", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("toolkit")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs sae-lens where it is not installed."""
    if importlib.util.find_spec("sae_lens") is None:
        skip = pytest.mark.skip(reason='sae-lens is not installed: pip install -c constraints.txt -e ".[sae]"')
        for item in items:
            if item.get_closest_marker("sae"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real tokenizers and text (`tokenizers/`, `ud_ewt/`), kept beside the checkout and not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data beside the checkout")
    return folder
