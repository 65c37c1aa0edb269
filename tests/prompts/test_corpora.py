"""Text is read from files, folders and datasets alike, and cut into windows."""

from __future__ import annotations

import json

import pandas
import pytest
import torch

from mechinterp_toolkit.errors import ToolkitError
from mechinterp_toolkit.prompts.corpora import text_windows, texts

LINES = ["w3 w4 w5 w6 w7", "w8 w9", "w10 w11 w12 w13 w14 w15 w16"]


@pytest.fixture(scope="module")
def tokenizer(hf_folders):
    """Word w7 is token 7."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hf_folders["gpt2"])


def write(folder, suffix):
    path = folder / f"corpus{suffix}"
    frame = pandas.DataFrame({"text": LINES, "kind": [1, 2, 3]})
    if suffix == ".txt":
        path.write_text("\n\n".join(LINES))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": line, "kind": 0}) for line in LINES))
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text(
            "".join(f"# sent_id = a\n# text = {line}\n1\tw\tw\tNOUN\n\n" for line in LINES)
        )
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet", ".conllu"])
def test_every_kind_of_file_gives_its_texts_in_order(tmp_path, suffix):
    assert list(texts(write(tmp_path, suffix))) == LINES


def test_a_folder_gives_the_texts_of_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "notes.md").write_text("no corpus")
    assert list(texts(tmp_path)) == ["first", "second"]


def test_windows_do_not_cross_texts_and_say_which_one_they_are_from(tmp_path, tokenizer):
    found = text_windows(tokenizer, write(tmp_path, ".txt"), 10, 3, prepend_bos=False)
    assert found.tokens.tolist() == [[3, 4, 5], [10, 11, 12], [13, 14, 15]]
    assert found.text.tolist() == [0, 2, 2]


def test_windows_stand_behind_the_beginning_of_sequence_token_where_asked(tmp_path, tokenizer):
    found = text_windows(tokenizer, write(tmp_path, ".txt"), 2, 3, prepend_bos=True)
    assert torch.equal(found.tokens, torch.tensor([[2, 3, 4, 5], [2, 10, 11, 12]]))


def test_the_treebank_is_a_corpus(shared_data):
    (file,) = (shared_data / "ud_ewt").glob("*.conllu")
    first = next(texts(file))
    assert len(first.split()) > 3
    assert not first.startswith("#")


def test_what_is_no_corpus_is_refused(tmp_path, tokenizer):
    with pytest.raises(
        ToolkitError, match="no file or folder here, and `datasets` could not load it"
    ):
        list(texts("nobody/nothing"))
    with pytest.raises(ToolkitError, match="holds no file ending in"):
        list(texts(tmp_path))
    (tmp_path / "LICENSE.txt").write_text("x")
    write(tmp_path, ".csv")
    with pytest.raises(ToolkitError, match=r"several kinds \(\.csv, \.txt\)"):
        list(texts(tmp_path))
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ToolkitError, match=r"a\.pdf is not a text this reads"):
        list(texts(tmp_path / "a.pdf"))
    with pytest.raises(ToolkitError, match=r"has no column 'txt'\. Did you mean 'text'"):
        list(texts(write(tmp_path, ".csv"), column="txt"))
    with pytest.raises(ToolkitError, match="has 0 pieces of 30 tokens"):
        text_windows(tokenizer, write(tmp_path, ".txt"), 10, 30, prepend_bos=False)
