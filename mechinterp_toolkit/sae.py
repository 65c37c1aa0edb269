"""`load_sae(source)`: a sparse autoencoder as plain tensors, read from disk without sae-lens.

A folder holds `cfg.json` and `sae_weights.safetensors`, as sae-lens saves them; an object of
sae-lens, or a release of its catalogue ("gpt2-small-res-jb/blocks.7.hook_resid_pre"), comes to the
same. An autoencoder of your own needs no folder: give its tensors to `SparseAutoencoder`.
Architectures: standard, topk and jumprelu.

What would fool it, and is refused: an architecture, normalisation or reshaping that is not known
here; a model prepared in a way that its record names and nobody can repeat. What the record asks
for is done: an autoencoder trained where the writing weights were centred gets activations with
their mean over features subtracted.

Source: the file format and the encoders of SAELens, github.com/decoderesearch/SAELens; Bricken et
al. 2023, Towards Monosemanticity (standard); Gao et al. 2024, arXiv:2406.04093 (topk);
Rajamanoharan et al. 2024, arXiv:2407.14435 (jumprelu).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp_toolkit.errors import CheckpointError, NotApplicable, nearest

ARCHITECTURES = ("standard", "topk", "jumprelu")
"""What can be read; BatchTopK autoencoders are saved as jumprelu."""

FOLDER = (
    "a folder needs sae_weights.safetensors with W_enc, b_enc, W_dec and b_dec (jumprelu also"
    " threshold), and cfg.json with architecture, d_in, d_sae (topk also k) and metadata:"
    ' {"sae_lens_version": "6...", "hook_name": "..."}'
)
"""What a folder holds, as `save_inference_model` of sae-lens 6 writes it."""


@dataclass(frozen=True)
class SparseAutoencoder:
    """An encoder and a decoder over one hook point's activations.

    >>> eye, zero = torch.eye(2), torch.zeros(2)
    >>> of_my_own = SparseAutoencoder("mine", "standard", eye, zero, eye, zero, "hook_embed")
    >>> of_my_own.encode(torch.tensor([1.0, -1.0]))
    tensor([1., 0.])
    """

    name: str
    """Where it came from: a folder with its whole path, a release, the class of an object, or any
    name you give."""

    architecture: str
    """One of `ARCHITECTURES`."""

    w_enc: Float[Tensor, "d_in d_sae"]
    """Encoder weights."""

    b_enc: Float[Tensor, " d_sae"]
    """Encoder bias."""

    w_dec: Float[Tensor, "d_sae d_in"]
    """Decoder directions, one per row; their norms are not assumed to be one."""

    b_dec: Float[Tensor, " d_in"]
    """Decoder bias."""

    hook_point: str | None
    """Where it was trained to read, e.g. "blocks.7.hook_resid_pre"; None where its record does not
    say."""

    threshold: Float[Tensor, " d_sae"] | None = None
    """jumprelu: what a pre-activation must exceed."""

    k: int | None = None
    """topk: latents active per row."""

    subtracts_b_dec: bool = True
    """Whether the decoder bias is subtracted before encoding."""

    rescaled: bool = False
    """topk: whether pre-activations count times the norm of their decoder row."""

    centred_input: bool = False
    """Whether it saw centred writing weights, so that inputs lose their mean over d_in."""

    def __str__(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        """What to call it in a sentence: the name, of a folder without the path to it."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def d_sae(self) -> int:
        """Latents."""
        return len(self.w_dec)

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Return the latents' values for raw activations of the model; none is negative.

        They are what multiplies the rows of `w_dec`. For a rescaled topk autoencoder sae-lens
        returns them times the norm of the row, and divides by it when it decodes.

        Raises:
            NotApplicable: the activations have another width.
        """
        if x.shape[-1] != self.w_enc.shape[0]:
            raise NotApplicable(
                f"the autoencoder {self.name} reads {self.w_enc.shape[0]} features, these"
                f" activations have {x.shape[-1]}; it was trained at"
                f" {self.hook_point or 'an unknown hook point'}."
            )
        x = x.to(self.w_enc.dtype)
        if self.centred_input:
            x = x - x.mean(-1, keepdim=True)
        before = (x - self.b_dec if self.subtracts_b_dec else x) @ self.w_enc + self.b_enc
        if self.architecture == "standard":
            return before.relu()
        if self.architecture == "jumprelu":
            assert self.threshold is not None
            return before.relu() * (before > self.threshold)
        return self._topk(before)

    def _topk(self, before: Tensor) -> Tensor:
        assert self.k is not None
        norm = self.w_dec.norm(dim=-1) if self.rescaled else torch.ones_like(self.b_enc)
        values, index = (before * norm).topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter_(-1, index, values.relu()) / norm

    def decode(self, codes: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_in"]:
        """Return the reconstructed activations; their centred form where `centred_input`."""
        return codes @ self.w_dec + self.b_dec


def load_sae(source: Any) -> SparseAutoencoder:
    """Return the autoencoder that `source` names.

    Args:
        source: a `SparseAutoencoder`; an object of sae-lens; a folder; or "RELEASE/SAE_ID" of the
            catalogue of sae-lens, which needs sae-lens and, unless it is cached, the network.

    Raises:
        CheckpointError: the folder is not an autoencoder, a tensor is missing or misshapen or not
            finite, or sae-lens is needed and not installed.
        NotApplicable: the architecture or its settings are not known here.
    """
    if isinstance(source, SparseAutoencoder):
        return source
    if isinstance(source, str | Path):
        return _read_folder(Path(source)) if Path(source).is_dir() else _from_release(str(source))
    if hasattr(source, "state_dict") and hasattr(getattr(source, "cfg", None), "to_dict"):
        return _build(type(source).__name__, source.cfg.to_dict(), source.state_dict())
    raise CheckpointError(
        f"got a {type(source).__name__}; expected a mechinterp_toolkit.sae.SparseAutoencoder, a"
        " folder, RELEASE/SAE_ID, or an SAE object of sae-lens."
    )


def _read_folder(folder: Path) -> SparseAutoencoder:
    from safetensors.torch import load_file

    files = ("cfg.json", "sae_weights.safetensors")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {' and no '.join(missing)}; {FOLDER}, as `save_inference_model` of"
            " sae-lens writes it."
        )
    record = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    return _build(str(folder.resolve()), record, load_file(folder / "sae_weights.safetensors"))


def _from_release(name: str) -> SparseAutoencoder:
    release, slash, sae_id = name.partition("/")
    if not slash:
        raise CheckpointError(
            f"{name!r} is no folder here and no RELEASE/SAE_ID of sae-lens; check the path."
        )
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise CheckpointError(
            f"{name!r} is no folder here, and releases need sae-lens: pip install"
            " 'mechinterp-toolkit[sae]'."
        ) from error
    released = SAE.from_pretrained(release, sae_id)
    return _build(name, released.cfg.to_dict(), released.state_dict())


def _build(name: str, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> SparseAutoencoder:
    architecture = str(record.get("architecture"))
    _check_known(name, architecture, record)
    metadata = record.get("metadata") or {}
    read = _reader(name, state)
    d_in, d_sae = record["d_in"], record["d_sae"]
    return SparseAutoencoder(
        name=name,
        architecture=architecture,
        w_enc=read("W_enc", (d_in, d_sae)),
        b_enc=read("b_enc", (d_sae,)),
        w_dec=read("W_dec", (d_sae, d_in)),
        b_dec=read("b_dec", (d_in,)),
        hook_point=metadata.get("hook_name"),
        threshold=read("threshold", (d_sae,)) if architecture == "jumprelu" else None,
        k=int(record["k"]) if architecture == "topk" else None,
        subtracts_b_dec=bool(record.get("apply_b_dec_to_input", True)),
        rescaled=bool(record.get("rescale_acts_by_decoder_norm", False)),
        centred_input=_centred(name, metadata.get("model_from_pretrained_kwargs") or {}),
    )


def _reader(name: str, state: Mapping[str, Tensor]) -> Callable[[str, tuple[int, ...]], Tensor]:
    def read(key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in state:
            raise CheckpointError(f"the autoencoder {name} has no {key}.{nearest(key, state)}")
        tensor = state[key].detach().cpu().float()
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{key} of {name} is {tuple(tensor.shape)}; its record says {shape}."
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{key} of {name} holds NaN or infinite numbers.")
        return tensor

    return read


def _check_known(name: str, architecture: str, record: Mapping[str, Any]) -> None:
    if not (record.get("metadata") or {}).get("sae_lens_version"):
        raise NotApplicable(
            f"the record of {name} has no metadata.sae_lens_version, so what its keys mean is not"
            " known: before sae-lens 6 they meant other things (load such a folder with"
            " sae_lens.SAE.load_from_disk and pass the object). Of an autoencoder of your own pass"
            f" a mechinterp_toolkit.sae.SparseAutoencoder of its tensors; {FOLDER}."
        )
    written_by = str(record["metadata"]["sae_lens_version"])
    if written_by.split(".")[0] != "6":
        raise NotApplicable(
            f"{name} was written by sae-lens {written_by}, and what its keys mean is known for"
            " sae-lens 6; pass a mechinterp_toolkit.sae.SparseAutoencoder of its tensors."
        )
    needed = ("architecture", "d_in", "d_sae", *(("k",) if architecture == "topk" else ()))
    absent = [key for key in needed if key not in record]
    if absent:
        raise CheckpointError(f"the record of {name} has no {', '.join(absent)}; {FOLDER}.")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES) + "." + nearest(architecture, ARCHITECTURES)
        raise NotApplicable(f"{name} is a {architecture!r} autoencoder; known here are {known}")
    for key in ("normalize_activations", "reshape_activations"):
        if record.get(key, "none") != "none":
            raise NotApplicable(
                f"{name} was trained with {key}={record[key]!r}, which is not done here; fold it"
                " into the weights (sae-lens does so for its own releases) or use another"
                " autoencoder."
            )


def _centred(name: str, prepared: Mapping[str, Any]) -> bool:
    centring = "center_writing_weights"
    unknown = sorted(key for key, value in prepared.items() if key != centring and value)
    if unknown:
        raise NotApplicable(
            f"{name} was trained on a model loaded with {', '.join(unknown)}, which cannot be"
            " repeated here: its latents would be read from the wrong activations."
        )
    return bool(prepared.get(centring, False))
