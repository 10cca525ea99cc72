"""What the realistic pipeline's phases take beside weights: a model condensed from simulations.

It counts how many copies of a token's numbers are alive in the most crowded moment of each phase.
benchmarks/_vram_plan.py holds it to simulations of the host's own networks at their real size.
vram_plan.py plans with it.

All sizes are bytes; GB are 10⁹ of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command line plans with this before there is a torch.
    from torch import Tensor

GB = 10**9
TEXT, ENCODE, DIT, DECODE, RESTORE = "text encoding", "picture encoding", "DiT", "decode", "restore"
PHASES = (TEXT, ENCODE, DIT, DECODE, RESTORE)
FULL = 0
"""Job.strip_rows of a decode of the whole picture at once."""

TEMPLATE_TOKENS = 64
"""That the text encoder reads before a conditioning begins."""

_LEAST_QUERIES = 4096
"""Of the streamed attention at once, whatever the strips."""
_NARROW = ("float8", "int8", "uint8")


@dataclass(frozen=True)
class DiTShape:
    """Widths of a Qwen-Image DiT; the official ones by default."""

    hidden: int = 3072
    head_dim: int = 128
    channels: int = 64
    mlp_ratio: int = 4


@dataclass(frozen=True)
class TextShape:
    """Widths of a Qwen2.5-VL text encoder. narrow_embedding: its table of tokens is held in one
    byte a number, and widened as a whole whenever it is asked."""

    hidden: int = 3584
    intermediate: int = 18944
    vocabulary: int = 152064
    vision_hidden: int = 1280
    narrow_embedding: bool = False


@dataclass(frozen=True)
class VAEShape:
    """Widths of the VAE: ``base`` channels at full size, ``base`` x 4 in its middle."""

    base: int = 96


@dataclass(frozen=True)
class Loaded:
    """What is loaded.

    dit, text_encoder, vae, lora: name of a dtype, as in str(torch.bfloat16) without "torch." ->
    bytes, see ``by_dtype``. table: bytes of the modulation table's rows, 0 without one.
    """

    dit: Mapping[str, int] = field(default_factory=dict)
    text_encoder: Mapping[str, int] = field(default_factory=dict)
    vae: Mapping[str, int] = field(default_factory=dict)
    lora: Mapping[str, int] = field(default_factory=dict)
    table: int = 0
    dit_shape: DiTShape = DiTShape()
    text_shape: TextShape = TextShape()
    vae_shape: VAEShape = VAEShape()

    @property
    def bytes(self) -> dict[str, int]:
        """component -> bytes of all of it."""
        parts = {name: getattr(self, name) for name in ("dit", "text_encoder", "vae", "lora")}
        return {name: sum(part.values()) for name, part in parts.items()} | {"table": self.table}


@dataclass(frozen=True)
class Job:
    """What is asked for.

    width, height: of the result in pixels. references: (width, height) of each reference latent's
    picture. vision: (width, height) of each copy that the text encoder sees. text_tokens: of the
    longest conditioning, those of the copies among them. conditionings: forward passes a step, 2
    with CFG. at_once: how many of them share a pass (the host joins them where their token counts
    match). precision: fp32 or bf16 of the VAE. strip_rows: rows of the latent that decoding and
    encoding take at once; FULL for the host's own. restore: bytes that the phase after decoding
    takes. itemsize: of the DiT's activations.
    """

    width: int = 1024
    height: int = 1024
    references: tuple[tuple[int, int], ...] = ((1024, 1024),)
    vision: tuple[tuple[int, int], ...] = ((384, 384),)
    text_tokens: int = 300
    batch: int = 1
    conditionings: int = 1
    at_once: int = 1
    precision: str = "fp32"
    strip_rows: int = 8
    restore: int = 0
    itemsize: int = 2

    def scaled(self, width: int, height: int) -> Job:
        """The same at another size; references follow, as they are made at the working size."""
        across, down = width / self.width, height / self.height
        references = tuple((sixteen(w * across), sixteen(h * down)) for w, h in self.references)
        return replace(self, width=width, height=height, references=references)


def by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Bytes of tensors by the name of their dtype; those on ``meta`` count as if they were real."""
    found: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + tensor.nbytes
    return found


def activations(loaded: Loaded, job: Job, phase: str) -> int:
    """Bytes of all tensors that are no weights, in the worst moment of a phase; weights that are
    widened for a moment among them."""
    if phase == TEXT:
        return _text(loaded, job)
    if phase == DIT:
        return _dit(loaded, job)
    if phase == RESTORE:
        return job.restore
    encoding = phase == ENCODE
    sizes = job.references if encoding else ((job.width, job.height),)
    return max((_vae(loaded.vae_shape, job, size, encoding) for size in sizes), default=0)


def _dit(loaded: Loaded, job: Job) -> int:
    shape, narrow = loaded.dit_shape, is_narrow(loaded.dit)
    sizes = ((job.width, job.height), *job.references)
    rows = job.batch * job.at_once
    image = rows * sum((w // 16) * (h // 16) for w, h in sizes)
    text = rows * job.text_tokens
    token = shape.hidden * job.itemsize
    square = shape.hidden**2 * job.itemsize if narrow else 0
    ratio = shape.mlp_ratio
    # A slice of a batch is copied where one of a single picture is a view.
    copied = 4 if rows > 1 else 0
    moments = (
        # q, k and v apart and joined, two streams' input and modulated input, rotation.
        10 * (image + text) * token + square,
        # The picture's attention goes out while all that went in is still held.
        (11 * image + (5 + copied) * text) * token + (square if rows > 1 else 0),
        (11 * text + (5 + 5 * (rows > 1)) * image) * token + (square if rows > 1 else 0),
        # The first layer of the MLP beside its widened weights.
        ((3 + ratio) * image + 2 * text) * token + ratio * square,
        ((3 + ratio) * text + 3 * image) * token + ratio * square,
        # Its two wide halves before and after the activation function.
        ((3 + 2 * ratio) * image + 2 * text) * token,
        ((3 + 2 * ratio) * text + 3 * image) * token,
    )
    # Throughout: what the DiT was given, and each token's rotation, a 2x2 matrix a pair.
    carried = (shape.channels + 2 * shape.head_dim) * job.itemsize * (image + text)
    return round(max(moments)) + carried


def _text(loaded: Loaded, job: Job) -> int:
    """The text encoder computes in fp32, layer by layer widened where it is held in less."""
    shape, wide = loaded.text_shape, 4
    if not loaded.text_encoder:
        return 0
    tokens = job.text_tokens + TEMPLATE_TOKENS
    layer = 0 if _is_fp32(loaded) else shape.hidden * shape.intermediate
    # What came in, the layer's input, the state and its norm; gate, up, and the next layer's weight
    # or gate times up; twice the square of a causal attention's mask.
    state, inner = tokens * shape.hidden, tokens * shape.intermediate
    language = 4 * state + 2 * inner + max(inner, layer) + 2 * tokens**2
    table = shape.vocabulary * shape.hidden + state if shape.narrow_embedding else 0
    seen = max((vision(loaded, size) for size in job.vision), default=0)
    return max(wide * language, wide * table, seen)


def vision(loaded: Loaded, size: tuple[int, int]) -> int:
    """Bytes beside the weights while the text encoder looks at one copy of a picture."""
    hidden, wide = loaded.text_shape.vision_hidden, 4
    state = 4 * picture_tokens(size) * hidden
    merger = 0 if _is_fp32(loaded) else (4 * hidden) ** 2
    return wide * max(12 * state, 4 * state + merger)


def picture_tokens(size: tuple[int, int]) -> int:
    """Tokens of a copy of (width, height) px: each stands for 28 x 28 of them."""
    width, height = (max(1, round(side / 28)) for side in size)
    return width * height


def _is_fp32(loaded: Loaded) -> bool:
    return set(loaded.text_encoder) == {"float32"}


def _vae(shape: VAEShape, job: Job, size: tuple[int, int], encoding: bool) -> int:
    width, height = size
    itemsize = {"fp32": 4, "bf16": 2}[job.precision]
    if job.strip_rows == FULL:
        return round(4.07 * shape.base * itemsize * job.batch * width * height)
    # Of its weights a stream copies the taps that a single frame uses.
    copies = (2095 if encoding else 2870) * shape.base**2
    across, down = width // 8, height // 8
    picture = 4 * shape.base * across * down
    queries = 4 * shape.base * min(across * down, max(job.strip_rows * across, _LEAST_QUERIES))
    # Copies of a strip at full size, and the rows that every convolution keeps for the next one.
    # All strips are of one height, as near as can be.
    rows = -(-down // -(-down // job.strip_rows))
    kept = 0 if rows == down else 8 * rows + 70 if encoding else 153
    strips = (4 * 8 * rows + kept) * width * shape.base
    return itemsize * (copies + picture + max(strips, 2 * picture + 4 * queries))


def is_narrow(parts: Mapping[str, int]) -> bool:
    """Whether weights are held in one byte a number, to be widened layer by layer."""
    return any(name.startswith(_NARROW) for name in parts)


def sixteen(side: float) -> int:
    """The multiple of 16 that lies nearest, at least 16."""
    return max(16, round(side / 16) * 16)


def check(job: Job) -> None:
    """Raises: ValueError where a job is none."""
    if min(job.width, job.height) < 16 or any(min(size) < 16 for size in job.references):
        raise ValueError(
            f"a picture of {job.width}x{job.height} with references {job.references}: "
            "expected sides of at least 16 px"
        )
    if min(job.batch, job.conditionings, job.at_once) < 1 or job.at_once > job.conditionings:
        raise ValueError("a batch and 1 ≤ at_once ≤ conditionings are expected")
    if job.precision not in ("fp32", "bf16") or job.strip_rows < FULL or job.text_tokens < 0:
        raise ValueError(f"expected fp32 or bf16, strips and tokens ≥ 0, got {job}")
