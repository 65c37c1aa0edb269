"""From a checkpoint to a page, as a user runs it: bundled toys and Hugging Face folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def mechinterp(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder`, offline."""
    command = [sys.executable, "-m", "mechinterp_toolkit", *arguments]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=offline, capture_output=True, text=True, check=False
    )


def outcomes(folder: Path) -> dict[tuple[str, str], dict]:
    """(checkpoint, analysis) -> its entry in report.json."""
    document = json.loads((folder / "report.json").read_text())
    return {
        (record["checkpoint"], entry["analysis"]): entry
        for record in document["checkpoints"]
        for entry in record["entries"]
    }


def real_tokenizer(shape: str, shared_data: Path):
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    if shape == "gpt2":
        return GPT2TokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt2")
    file = shared_data / "tokenizers" / "pythia" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def small_model(shape: str, d_vocab: int):
    import transformers as hf

    torch.manual_seed(0)
    size = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "vocab_size": d_vocab,
    }
    if shape == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=d_vocab)
        )
    return hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**size, intermediate_size=64, max_position_embeddings=64)
    )


def trained_a_little(model, tokenizer):
    """Twenty steps on a sentence of weekdays: weights that training moved."""
    text = " Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday," * 2
    tokens = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        loss = model(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 2
    return model


@pytest.fixture(scope="module", params=["gpt2 trained", "neox random"])
def saved(request, shared_data, tmp_path_factory) -> Path:
    """A folder with the folder `model` in it, as Hugging Face saves one."""
    shape, _, weights = request.param.partition(" ")
    tokenizer = real_tokenizer(shape, shared_data)
    model = small_model(shape, len(tokenizer))
    if weights == "trained":
        model = trained_a_little(model, tokenizer)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def reported(folder: Path, draws: dict[str, int]) -> dict[str, dict]:
    """Analysis -> its entry, each with as many draws."""
    asked = [part for name in draws for part in ("--analysis", name)]
    asked += [part for name, n in draws.items() for part in ("--set", f"{name}.draws={n}")]
    done = mechinterp("report", "model", "-o", "out", *asked, folder=folder)
    assert done.returncode == 0, done.stderr
    return {analysis: entry for (_, analysis), entry in outcomes(folder / "out").items()}


@pytest.mark.parametrize("saved", ["neox random"], indirect=True)
@pytest.mark.parametrize("asked", [("concept_reliance", "linear_direction"), ("number_helix",)])
def test_an_analysis_of_a_folder_that_hugging_face_saved_ends_in_a_verdict(saved, asked):
    for entry in reported(saved, dict.fromkeys(asked, 19)).values():
        assert entry["status"] == "ran"
        assert entry["used"]["outcome"] != "found"


def test_a_report_on_a_folder_that_hugging_face_saved(saved):
    few = ("successor_heads", "circular_features", "steering_effect")
    entries = reported(saved, dict.fromkeys((*few, "feature_clusters", "group_fourier"), 99))
    assert entries["circular_features"]["status"] == entries["steering_effect"]["status"] == "ran"
    assert "sae=" in entries["feature_clusters"]["reason"]
    successor = entries["successor_heads"]
    assert successor["status"] == "ran"
    assert successor["represented"]["outcome"] == "not_found"
    group = entries["group_fourier"]
    assert group["status"] == "not_applicable"
    assert "transformer of 2 layers" in group["reason"]
    page = (saved / "out" / "report.html").read_text()
    assert "successor_heads" in page
    # nothing is fetched when it opens
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?https?:", page)


def test_a_report_on_a_folder_without_a_tokenizer_says_why_nothing_was_asked(tmp_path):
    small_model("gpt2", 300).save_pretrained(tmp_path / "model")
    done = mechinterp("report", "model", "-o", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    entry = outcomes(tmp_path / "out")["model", "successor_heads"]
    assert entry["status"] == "not_applicable"
    assert "no tokenizer" in entry["reason"]


def test_a_checkpoint_that_is_not_there_is_wrong_usage(tmp_path):
    done = mechinterp("report", "./missing", folder=tmp_path)
    assert done.returncode == 2
    assert "no folder or file './missing'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_bundled_toys_show_what_they_were_trained_to_have_and_their_twins_do_not(tmp_path):
    done = mechinterp(
        "report", "toy/s5", "toy/ordinal", "toy/ordinal-mlp", "-o", "out",
        "--analysis", "group_fourier", "--analysis", "successor_heads", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entries = outcomes(tmp_path / "out")
    s5, ordinal, mlp = (
        entries[key]
        for key in (
            ("toy/s5", "group_fourier"),
            ("toy/ordinal", "successor_heads"),
            ("toy/ordinal-mlp", "successor_heads"),
        )
    )
    assert {s5["represented"]["outcome"], s5["used"]["outcome"]} == {"found"}
    assert "(4,1)" in s5["locations"]
    assert {ordinal["represented"]["outcome"], ordinal["used"]["outcome"]} == {"found"}
    assert "computed, but not by a head" in mlp["represented"]["reason"]
    for entry in (s5, ordinal, mlp):
        assert entry["twin"]["represented"]["outcome"] != "found"


def test_the_same_seed_gives_the_same_report_apart_from_times(tmp_path):
    for out in ("one", "two"):
        done = mechinterp(
            "report",
            "toy/s5",
            "-o",
            out,
            "--analysis",
            "group_fourier",
            "--set",
            "group_fourier.draws=99",
            "--set",
            "group_fourier.edit_draws=19",
            "--no-twin",
            folder=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    texts = [(tmp_path / out / "report.json").read_text() for out in ("one", "two")]
    assert without_times(json.loads(texts[0])) == without_times(json.loads(texts[1]))


def without_times(document):
    """The report without what a clock or the memory decided, which stands under `times`."""
    if isinstance(document, dict):
        return {key: without_times(value) for key, value in document.items() if key != "times"}
    return [without_times(value) for value in document] if isinstance(document, list) else document
