"""Concept scrubbing: every site of the edited model has equal class means, on every wrapper."""

from __future__ import annotations

import math

import pytest
import torch

from mechinterp_toolkit.errors import NotApplicable, ToolkitError
from mechinterp_toolkit.hooks.scrub import bits_per_byte, scrub, scrub_memory, scrub_sites
from mechinterp_toolkit.intervention import applied
from mechinterp_toolkit.model import load_model
from mechinterp_toolkit.record import activations

CLASSES = 3


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return torch.randint(3, 60, (40, 12), generator=torch.Generator().manual_seed(0))


def labelled(tokens: torch.Tensor) -> torch.Tensor:
    """A concept that every token has by itself."""
    return tokens % CLASSES


def gaps(model, tokens, edits) -> dict[str, float]:
    """Largest distance between class means at each site under `edits`, in standard deviations."""
    found = {}
    for site in scrub_sites(model):
        x = activations(model, tokens, (site,), edits=edits)[site].double().flatten(0, 1)
        z = labelled(tokens).flatten()
        means = torch.stack([x[z == k].mean(0) for k in range(CLASSES)])
        found[site] = float(((means[:, None] - means[None]).norm(dim=-1)).max() / x.std())
    return found


def test_class_means_are_equal_at_every_site_of_the_edited_model(wrapped, text):
    before = gaps(wrapped, text, {})
    assert len(before) == 2 * wrapped.cfg.n_layers
    assert min(before.values()) > 0.1  # the effect is there before it is removed
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    assert list(scrubbed.erasers) == list(scrub_sites(wrapped))
    assert set(scrubbed.rank.values()) == {CLASSES - 1}
    assert scrubbed.n == text.numel()
    after = gaps(wrapped, text, scrubbed.erasers)
    assert max(after.values()) < 1e-4  # float32 activations, whose means are off by their rounding


def test_later_erasers_are_fitted_on_the_model_as_edited(wrapped, text):
    """Fitted on the plain model, the last one would keep what earlier erasers bring about."""
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    last = scrub_sites(wrapped)[-1]
    from mechinterp_toolkit.hooks.erase import LeaceFitter

    plain = LeaceFitter(wrapped.cfg.d_model, CLASSES)
    plain.update(activations(wrapped, text, (last,))[last], labelled(text))
    wrong = {**scrubbed.erasers, last: plain.eraser}
    assert gaps(wrapped, text, wrong)[last] > 100 * gaps(wrapped, text, scrubbed.erasers)[last]


def test_padding_does_not_count(wrapped, text):
    mask = torch.ones_like(text, dtype=torch.bool)
    mask[:, 9:] = False
    padded = text.clone()
    padded[:, 9:] = 3
    short = scrub(wrapped, text[:, :9], labelled(text[:, :9]), CLASSES)
    long = scrub(wrapped, padded, labelled(padded), CLASSES, mask=mask)
    assert long.n == short.n
    for site, eraser in short.erasers.items():
        # float32 attention over another length sums in another order
        assert torch.allclose(eraser.P, long.erasers[site].P, atol=1e-3)


def test_tokens_without_a_class_are_read_and_count_nowhere(wrapped, text):
    """A mask in their place would hide them from attention, as in another model."""
    some = torch.rand(text.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    labels = labelled(text).where(some, torch.tensor(-1))
    scrubbed = scrub(wrapped, text, labels, CLASSES)
    assert scrubbed.n == int(some.sum())
    for site in scrub_sites(wrapped):
        x = activations(wrapped, text, (site,), edits=scrubbed.erasers)[site].double()[some]
        means = torch.stack([x[labels[some] == k].mean(0) for k in range(CLASSES)])
        assert float((means[:, None] - means[None]).norm(dim=-1).max() / x.std()) < 1e-4


@pytest.mark.parametrize("method", ["orth", "random", "shuffled"])
def test_controls_erase_as_many_directions(wrapped, text, method):
    control = scrub(wrapped, text, labelled(text), CLASSES, method=method)
    assert set(control.rank.values()) == {CLASSES - 1}
    after = gaps(wrapped, text, control.erasers)
    equal = max(after.values()) < 1e-4
    assert equal == (method == "orth")


def test_nothing_is_left_on_the_model_after_an_exception(wrapped, text):
    scrubbed = scrub(wrapped, text, labelled(text), CLASSES)
    with pytest.raises(KeyError), applied(wrapped, scrubbed.erasers):
        raise KeyError
    assert all(not point.fwd_hooks for point in wrapped.hook_points.values())


def test_bits_per_byte_of_a_uniform_model_worked_by_hand(wrapped, text):
    import copy

    plain = copy.deepcopy(wrapped.model)
    uniform = load_model(plain, tokenizer=wrapped.tokenizer)
    last = (
        "unembed.hook_out"
        if "unembed.hook_out" in uniform.hook_points
        else "ln_final.hook_normalized"
    )

    def flat(activation, hook):
        return torch.zeros_like(activation)

    found = bits_per_byte(uniform, text, torch.full((40,), 22), edits={last: flat})
    if last == "unembed.hook_out":
        assert float(found.value) == pytest.approx(11 * math.log2(60) / 22, rel=1e-6)
    assert found.low <= found.value <= found.high


def test_the_memory_is_said_beforehand(wrapped):
    d = wrapped.cfg.d_model
    assert scrub_memory(wrapped, CLASSES) > 8 * d * d
    assert scrub_memory(wrapped, CLASSES) < 8 * d * d * 10


def test_what_cannot_be_scrubbed_is_refused(wrapped, text):
    with pytest.raises(NotApplicable, match="no sublayers to scrub"):
        scrub_sites(load_model("toy/s5"))
    with pytest.raises(ToolkitError, match="same in all"):
        scrub(wrapped, text, torch.zeros_like(text), CLASSES)
    with pytest.raises(ToolkitError, match="40 prompts have no bytes"):
        bits_per_byte(wrapped, text, torch.zeros(40, dtype=torch.long))


def test_a_method_nobody_knows_is_refused(wrapped, text, as_a_user):
    with pytest.raises(ToolkitError, match=r"not 'leece'\. Did you mean 'leace'\?"):
        scrub(wrapped, text, labelled(text), CLASSES, method="leece")


SENTENCES, LENGTH, VOCABULARY = 800, 24, 400


def treebank(folder):
    """Words and parts of speech: ids [sentence pos], classes, mask, bytes of predicted words."""
    from collections import Counter

    (file,) = folder.glob("*.conllu")
    sentences: list[list[tuple[str, str]]] = [[]]
    for line in file.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) == 10 and cells[0].isdigit():
            sentences[-1].append((cells[1], cells[3]))
        elif not line:
            sentences.append([])
    kept = [s[:LENGTH] for s in sentences if len(s) >= 6][:SENTENCES]
    common = [
        word for word, _ in Counter(word for s in kept for word, _ in s).most_common(VOCABULARY - 2)
    ]
    word_id = {word: i + 2 for i, word in enumerate(common)}  # 0 pads, 1 is any other word
    tag_id = {tag: i for i, tag in enumerate(sorted({tag for s in kept for _, tag in s}))}
    tokens, labels = (torch.zeros(len(kept), LENGTH, dtype=torch.long) for _ in range(2))
    mask, n_bytes = (
        torch.zeros(len(kept), LENGTH, dtype=torch.bool),
        torch.zeros(len(kept), dtype=torch.long),
    )
    for i, sentence in enumerate(kept):
        tokens[i, : len(sentence)] = torch.tensor([word_id.get(word, 1) for word, _ in sentence])
        labels[i, : len(sentence)] = torch.tensor([tag_id[tag] for _, tag in sentence])
        mask[i, : len(sentence)] = True
        n_bytes[i] = sum(len(f" {word}".encode()) for word, _ in sentence[1:])
    return tokens, labels, len(tag_id), mask, n_bytes


def trained(tokens: torch.Tensor, mask: torch.Tensor, steps: int = 400):
    """A two-layer GPT-2 shape, trained on the sentences."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=2,
        n_head=4,
        n_embd=64,
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (48,), generator=generator)
        optimiser.zero_grad()
        model(tokens[rows], labels=tokens[rows].masked_fill(~mask[rows], -100)).loss.backward()
        optimiser.step()
    return load_model(model.eval())


@pytest.mark.slow
def test_scrubbing_part_of_speech_costs_more_than_random_directions_and_less_than_orthogonal_ones(
    shared_data,
):
    tokens, labels, classes, mask, n_bytes = treebank(shared_data / "ud_ewt")
    model = trained(tokens, mask)

    def cost(method: str | None) -> float:
        edits = (
            {}
            if method is None
            else scrub(model, tokens, labels, classes, mask=mask, method=method).erasers
        )
        return float(bits_per_byte(model, tokens, n_bytes, mask=mask, edits=edits).value)

    plain, random, leace, orth = (cost(method) for method in (None, "random", "leace", "orth"))
    print(
        f"bits per byte: none {plain:.3f}, random {random:.3f}, LEACE {leace:.3f}, orth {orth:.3f}"
    )
    assert plain <= random < leace < orth
    assert random - plain < 0.5 * (leace - plain)
    scrubbed = scrub(model, tokens, labels, classes, mask=mask)
    for site in scrub_sites(model):
        x = activations(model, tokens, (site,), mask=mask, edits=scrubbed.erasers)[site][
            mask
        ].double()
        means = torch.stack([x[labels[mask] == k].mean(0) for k in range(classes)])
        assert (means[:, None] - means[None]).abs().max() < 1e-4 * x.std()
