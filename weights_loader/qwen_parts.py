"""What is known of a Qwen-Image-Edit model from its headers: frozen descriptions, no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from . import files

Layout = Literal["official", "repacked"]
QuantKind = Literal["none", "fp8", "fp8 scaled", "other"]

MARKER = "__index_timestep_zero__"
"""The empty tensor by which ComfyUI's repacks say what `zero_cond_t` says in the official config:
the reference picture's tokens see t = 0. It makes a 2511 of a 2509."""


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer. The defaults are the official 2511's.

    out_channels: of the latent; `patch`² of them stand in a token.
    axes_dims: rotary numbers per head for frame, row and column; their sum is `head_dim`.
    zero_cond_t: the 2511 marker; False in 2509 and before.
    """

    num_layers: int = 60
    heads: int = 24
    head_dim: int = 128
    joint_dim: int = 3584
    in_channels: int = 64
    out_channels: int = 16
    patch: int = 2
    axes_dims: tuple[int, int, int] = (16, 56, 56)
    zero_cond_t: bool = True

    @property
    def width(self) -> int:
        """Numbers in a token inside the network."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TextConfig:
    """The text encoder, Qwen2.5-VL, with its vision part. The defaults are the official ones.

    vision_whole: layers of the vision part that attend to the whole picture, not to windows.
    """

    num_layers: int = 28
    hidden: int = 3584
    intermediate: int = 18944
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    vocabulary: int = 152064
    vision_layers: int = 32
    vision_hidden: int = 1280
    vision_intermediate: int = 3420
    vision_heads: int = 16
    vision_whole: tuple[int, ...] = (7, 15, 23, 31)

    @property
    def vision(self) -> tuple[object, ...]:
        """All that the vision part is built from."""
        sizes = (self.vision_layers, self.vision_hidden, self.vision_intermediate)
        return (*sizes, self.vision_heads, self.vision_whole)


@dataclass(frozen=True)
class VAEConfig:
    """The VAE. What else its config could say is fixed in ComfyUI and checked to be that."""

    dim: int = 96
    z_dim: int = 16


@dataclass(frozen=True)
class Quantisation:
    """How the large matrices are stored.

    kind: "none"; "fp8": cast, no scales; "fp8 scaled": float8_e4m3fn with a scale each; "other": a
        format that newer hosts may know (see `formats`).
    formats: ComfyUI's names of the formats, as far as headers tell.
    layers: quantised modules; the rest of a mixed file is stored in full.
    scheme: where ComfyUI is told of it: "" for nowhere, "scaled_fp8" (a marker tensor beside
        `scale_weight`), "comfy_quant" (a tensor a layer) or "metadata" (`_quantization_metadata`).
    """

    kind: QuantKind = "none"
    formats: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    scheme: Literal["", "scaled_fp8", "comfy_quant", "metadata"] = ""


@dataclass(frozen=True)
class Part:
    """One of the three networks, described from headers and config.json alone.

    kind: "dit", "text" or "vae".
    path: what was named, a file or the component's folder. files: what is read from.
    layout: "official" (names of the official repository) or "repacked" (ComfyUI's names).
    dtype: safetensors' name of the dtype that takes the most bytes.
    dtypes: bytes by dtype. bytes_by: bytes by part: "modulation" and "body" of a DiT, "text" and
        "vision" of a text encoder, "encoder" and "decoder" of a VAE.
    tensors: ComfyUI's name -> tensor not read yet; loading one maps it, it is not copied.
    metadata: the file's texts; those of ComfyUI's about layers name them as `tensors` does.
    unused: how many tensors of the file are left out (such as `lm_head.weight`).
    """

    kind: Literal["dit", "text", "vae"]
    path: Path
    files: tuple[Path, ...]
    layout: Layout
    config: DiTConfig | TextConfig | VAEConfig
    dtype: str
    dtypes: Mapping[str, int]
    bytes_by: Mapping[str, int]
    quantisation: Quantisation
    unused: int = 0
    tensors: Mapping[str, files.Stored] = field(default_factory=dict, compare=False, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def total_bytes(self) -> int:
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class Base:
    """What `base` names: a DiT alone, or the whole official folder.

    folder: the official folder. text, vae, tokenizer, scheduler: of that folder, else None.
    pipeline: the class in its model_index.json, "" for a single file.
    """

    dit: Part
    text: Part | None = None
    vae: Part | None = None
    folder: Path | None = None
    tokenizer: Path | None = None
    scheduler: Path | None = None
    pipeline: str = ""

    @property
    def config(self) -> DiTConfig:
        assert isinstance(self.dit.config, DiTConfig)
        return self.dit.config

    @property
    def release(self) -> str:
        """Which release it is, as far as it can be told.

        Qwen-Image, Qwen-Image-Edit and 2509 have the same tensors: a single file does not say
        which of them it is, and neither does a 2511 that was repacked without its marker.
        """
        if self.config.zero_cond_t:
            return "Qwen-Image-Edit-2511"
        if self.pipeline == "QwenImageEditPlusPipeline":
            return "Qwen-Image-Edit-2509"
        if self.pipeline:
            return "Qwen-Image-Edit"
        return "Qwen-Image-Edit-2509 or before (or Qwen-Image: its tensors are the same)"
