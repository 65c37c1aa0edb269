"""What a checkpoint string means, and the toolkit's own checkpoint folders.

A checkpoint is named by a hub name with an optional `@revision`, a folder, a bundled name
(`toy/s5`), or a `.pt` / `.safetensors` state dict with a `config.json` beside it. A toolkit folder
holds `checkpoint.json` (schema version, architecture, task, training record), `model.safetensors`,
and under `history/` the weights along training; a GPT-2-shaped toy folder is a Hugging Face folder
plus that file. Nothing here executes code from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mechinterp_toolkit.errors import CheckpointError, nearest
from mechinterp_toolkit.files import write_json

SCHEMA_VERSION = 1

Kind = Literal["hub", "hf_folder", "toolkit", "state_dict"]

# Names TransformerLens users write that are not repositories on the hub.
_PYTHIA = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_SHORT_NAMES = {
    "gpt2-small": "gpt2",
    **{f"pythia-{size}": f"EleutherAI/pythia-{size}" for size in _PYTHIA},
}

_BUNDLED = Path(__file__).parent / "toys" / "checkpoints"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class CheckpointSpec:
    """A checkpoint string, understood."""

    text: str
    """The string as it was given."""

    kind: Kind
    """hub name, Hugging Face folder, toolkit folder, or a lone state dict."""

    location: str
    """Hub name or path."""

    revision: str | None = None
    """Hub revision, or "stepN" of a toolkit folder's history."""

    @property
    def path(self) -> Path:
        """`location` as a path."""
        return Path(self.location)


@dataclass(frozen=True)
class CheckpointRecord:
    """The contents of `checkpoint.json`."""

    architecture: str
    """"GroupMLP" or a Hugging Face architecture."""

    config: Mapping[str, Any]
    """What the architecture needs to be built."""

    task: Mapping[str, Any]
    """What the network was trained to do."""

    training: Mapping[str, Any]
    """Recipe, seed, steps, metrics."""

    steps: tuple[int, ...]
    """Steps kept in the history, ascending."""


@dataclass(frozen=True)
class ToolkitCheckpoint(CheckpointRecord):
    """The contents of a toolkit folder at one step."""

    state: Mapping[str, Tensor]
    """Weights by name."""


def parse_spec(text: str, revision: str | None = None) -> CheckpointSpec:
    """Return what the checkpoint string `text` names.

    >>> spec = parse_spec("pythia-70m@step3000")
    >>> spec.kind, spec.location, spec.revision
    ('hub', 'EleutherAI/pythia-70m', 'step3000')

    Args:
        text: a hub name, folder, bundled name or state-dict file, optionally ending in `@revision`.
        revision: the same as writing `text@revision`.

    Raises:
        CheckpointError: nothing is there, the folder is no checkpoint, or a revision was asked of a
            folder that has none.
    """
    base, _, suffix = (
        text.rpartition("@") if "@" in text and not Path(text).exists() else (text, "", "")
    )
    if suffix and revision and suffix != revision:
        raise CheckpointError(
            f"two revisions were given, {suffix!r} in {text!r} and {revision!r}; give one."
        )
    wanted = revision or suffix or None
    if base.startswith("toy/"):
        return CheckpointSpec(text, "toolkit", str(bundled_folder(base)), wanted)
    path = Path(base).expanduser()
    if path.is_dir():
        return _folder_spec(text, path, wanted)
    if path.is_file():
        return _file_spec(text, path, wanted)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) or base.startswith((".", "~")):
        raise CheckpointError(
            f"there is no folder or file {base!r}. Give an existing path, a hub name, or a bundled"
            f" one ({', '.join(bundled_names())})."
        )
    return CheckpointSpec(text, "hub", _SHORT_NAMES.get(base, base), wanted)


def bundled_names() -> tuple[str, ...]:
    """Return the names of the checkpoints that come with the package: "toy/s5", ..."""
    return tuple(f"toy/{file.parent.name}" for file in sorted(_BUNDLED.glob("*/checkpoint.json")))


def bundled_folder(name: str) -> Path:
    """Return the folder of a bundled checkpoint, given with or without its `toy/`.

    Raises:
        CheckpointError: it is not bundled.
    """
    full = f"toy/{name.removeprefix('toy/')}"
    if full not in bundled_names():
        raise CheckpointError(
            f"{name!r} is not bundled.{nearest(full, bundled_names())} There are"
            f" {', '.join(bundled_names())}."
        )
    return _BUNDLED / full.removeprefix("toy/")


def write_checkpoint(
    folder: str | Path,
    *,
    architecture: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    task: Mapping[str, Any],
    training: Mapping[str, Any],
    history: Mapping[int, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write a toolkit checkpoint folder and return it.

    Args:
        folder: made if needed.
        architecture: "GroupMLP", or the Hugging Face architecture of a folder written by
            `save_pretrained`.
        config: what the architecture needs to be built again.
        state: weights by name, or None where `save_pretrained` has already written
            `model.safetensors`.
        task: what was learned (operation, classes, ...).
        training: recipe, seed, steps, metrics.
        history: step -> weights along training; kept in half precision, which is enough to follow
            them.

    Raises:
        CheckpointError: `state` is None and the folder holds no `model.safetensors`.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        save_file(_plain(state), folder / "model.safetensors")
    elif not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} holds no model.safetensors; call save_pretrained first or give `state`."
        )
    steps = sorted(history or {})
    for step in steps:
        (folder / "history").mkdir(exist_ok=True)
        save_file(_halved((history or {})[step]), _history_file(folder, step))
    document = {
        "schema_version": SCHEMA_VERSION,
        "architecture": architecture,
        "config": dict(config),
        "task": dict(task),
        "training": dict(training),
        "history": steps,
    }
    write_json(folder / "checkpoint.json", document)
    return folder


def read_checkpoint(folder: str | Path, revision: str | None = None) -> ToolkitCheckpoint:
    """Read a toolkit folder, at the end of training or at a step of its history.

    Args:
        folder: a folder with `checkpoint.json`.
        revision: "stepN" for a step of the history; None for the final weights.

    Raises:
        CheckpointError: the record is missing, newer than this version, or has no such step.
    """
    folder = Path(folder)
    record = read_record(folder)
    if revision is None:
        file = folder / "model.safetensors"
    else:
        names = [f"step{step}" for step in record.steps]
        if revision not in names:
            have = f"it has {', '.join(names)}" if names else "it keeps no history"
            raise CheckpointError(
                f"{folder.name} has no revision {revision!r}; {have}.{nearest(revision, names)}"
            )
        file = _history_file(folder, int(revision.removeprefix("step")))
    return ToolkitCheckpoint(**vars(record), state=_whole(read_state(file)))


def read_record(folder: str | Path) -> CheckpointRecord:
    """Read `checkpoint.json` alone, without the weights.

    Raises:
        CheckpointError: it is missing or of another schema.
    """
    file = Path(folder) / "checkpoint.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint.json, so it is no toolkit checkpoint.")
    document = json.loads(file.read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema {document.get('schema_version')!r}; this version reads"
            f" {SCHEMA_VERSION}."
        )
    return CheckpointRecord(
        architecture=document["architecture"],
        config=document["config"],
        task=_tuples(document["task"]),
        training=_tuples(document["training"]),
        steps=tuple(document["history"]),
    )


def read_state(file: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors` or `.pt` state dict; of a pickle only tensors, so no code runs.

    Raises:
        CheckpointError: the file is missing, truncated, holds objects other than tensors, or
            non-finite weights.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"there is no weights file {file}.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file} could not be read; it may be truncated or hold more than tensors: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{file} is not a state dict (name -> tensor); save `model.state_dict()`."
        )
    check_finite(state, str(file))
    return state


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointError` naming the first tensor of `state` with a NaN or an infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{where}: {name} has {bad} non-finite of {tensor.numel()} weights; the checkpoint"
                " is damaged."
            )


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the SHA-256 over sorted names, dtypes, shapes and bytes of weights.

    >>> fingerprint({"w": torch.zeros(2)})
    'c8568a9be43247ea'
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()[:16]


def has_tokenizer_files(folder: Path) -> bool:
    """Whether `folder` holds a vocabulary; without one a loader may silently make an empty one."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _folder_spec(text: str, path: Path, revision: str | None) -> CheckpointSpec:
    if (path / "checkpoint.json").is_file():
        return CheckpointSpec(text, "toolkit", str(path), revision)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds neither checkpoint.json nor config.json, so it is no checkpoint folder. "
            "Give a folder written by save_pretrained or by `mechinterp train`."
        )
    if revision is not None:
        raise CheckpointError(
            f"a revision ({revision!r}) was asked of the local folder {path}, which has none; "
            "give the folder of that revision instead."
        )
    return CheckpointSpec(text, "hf_folder", str(path))


def _file_spec(text: str, path: Path, revision: str | None) -> CheckpointSpec:
    if revision is not None:
        raise CheckpointError(
            f"a revision ({revision!r}) was asked of the file {path}; give the file of that"
            " revision instead."
        )
    if path.suffix not in (".pt", ".bin", ".pth", ".safetensors"):
        raise CheckpointError(f"{path} is no state dict (.pt or .safetensors).")
    if not (path.parent / "config.json").is_file():
        raise CheckpointError(
            f"{path} needs a Hugging Face config.json beside it, which says what to build."
        )
    return CheckpointSpec(text, "state_dict", str(path))


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: the record goes into results, which hold tuples."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _history_file(folder: Path, step: int) -> Path:
    return folder / "history" / f"step_{step:06d}.safetensors"


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in _plain(state).items()
    }


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in state.items()
    }
