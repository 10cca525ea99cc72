"""DCT-Net's cartoon generator: a U-Net of plain convolutions with a guided filter behind it.

Source of the network: menyifang/DCT-Net @147e4f2 and the frozen graphs published with it.

The forward pass is arranged by what costs time on a processor, where convolution itself is near
the machine's peak and everything else is memory traffic:

- tensors are channels-last, which oneDNN's 128-channel kernels like best;
- the two full-size ends run in strips of rows, so that their buffers are small enough to be
  handed out again by the allocator instead of being mapped, zeroed and faulted in each time;
- the last 7x7 convolution treats four neighbouring pixels as one with four times the channels, a
  view without a copy in channels-last order: three channels alone leave a vector register empty;
- up-sampling adds straight into the skip connection;
- TensorFlow's SAME padding at stride 2 (nothing before, one behind) is, on a picture turned by
  180 degrees, the symmetric padding that needs no padded copy. So the network runs turned, with
  turned kernels.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from .convolution import convolve, convolve_onto
from .tiles import Window

PAD_MULTIPLE = 16
"""Pictures are padded to this at the right and the bottom, as in the published pipeline."""

HALO_PX = 68
"""How far an output pixel can see (58 px before it, 64 behind, measured), and a stride to spare."""

BYTES_PER_PX = 420
"""Working memory of one forward pass in fp32, per pixel of its window (measured)."""

_LIMIT = 0.999999
_LEAST_STRIP_BYTES = {"cpu": 24 << 20}
_LEAST_STRIP_BYTES_ELSEWHERE = 256 << 20
_STRIP_BYTES_PER_PX = 46
"""Three strips a window: fewer cost memory, more cost time in rows that are computed twice."""
_FEATURE_BYTES = 32 * 4
_OVERLAP = 6
"""Rows that a full-size strip shares with its neighbours: 3 for the last convolution, 1 for the one
before it, 2 for the guided filter."""
_FILTER_ROWS = 32
_FILTER_EPS = 1e-2
_GROUP_PX = 4
_LAYERS = (
    (3, 32, 7), (32, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 3),
    (128, 64, 3), (64, 64, 3), (64, 32, 3), (32, 32, 3), (32, 3, 7),
)  # fmt: skip


class Config(Protocol):
    """The flags by which the published variants differ; weights_loader's DCTNetConfig has them."""

    @property
    def bgr(self) -> bool:
        """Whether the network reads and writes blue first."""
        ...

    @property
    def same_padding(self) -> bool:
        """Whether stride 2 pads as TensorFlow's SAME does: nothing before, one behind."""
        ...

    @property
    def tf1_upsample(self) -> bool:
        """Whether up-sampling is TensorFlow 1's: even pixels copied, odd ones averaged."""
        ...

    @property
    def guided_filter(self) -> bool:
        """Whether the output is smoothed along the input's edges."""
        ...

    @property
    def tanh(self) -> bool:
        """Whether the last layer ends in tanh."""
        ...

    @property
    def edge_padding(self) -> bool:
        """Whether a picture is padded by its own edge instead of white, as published."""
        ...


def _nothing() -> None:
    """The check of a caller who cannot be interrupted."""


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(128, 128, 3, padding=1)
        self.conv2 = nn.Conv2d(128, 128, 3, padding=1)


class DCTNet(nn.Module):
    """The generator. ``state_dict`` names: ``convs.0..9`` and ``blocks.0..3.conv1/conv2``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.tf1_upsample and not config.same_padding:
            raise ValueError(
                "tf1_upsample goes with same_padding: no published variant has it alone"
            )
        self.config = config
        # See the module's text. Half-pixel up-sampling is the same either way up.
        self._turned = config.same_padding
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in _LAYERS)
        self.blocks = nn.ModuleList(_Block() for _ in range(4))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def with_weights(cls, config: Config, tensors: Mapping[str, Tensor]) -> "DCTNet":
        """The network with these tensors (canonical names, all of them), ready to run.

        Raises: RuntimeError where a name or a shape is missing or too many.
        """
        # Without the random start that is thrown away at once: it takes longer than reading a file.
        with torch.device("meta"):
            net = cls(config)
        net.load_state_dict(dict(tensors), strict=True, assign=True)
        return net.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    def forward(self, image_bchw: Tensor, check: Callable[[], None] = _nothing) -> Tensor:
        """Draw a whole picture in one window.

        image_bchw: (B,3,H,W) RGB in [0,1], any H and W from 1 px. check: called between steps; it
        stops the run by raising. Returns: same shape and dtype, [0,1], not rounded to 8 bit;
        ``(x * 255)`` cut to an integer is what the published graph puts out.
        """
        height, width = image_bchw.shape[-2:]
        whole = (0, height, 0, width)
        return self.window(image_bchw, Window(whole, whole), check)

    def window(self, image_bchw: Tensor, window: Window, check: Callable[[], None]) -> Tensor:
        """Draw one window of a picture, equal to the same part of the whole to 1e-5.

        image_bchw: the whole picture, (B,3,H,W) RGB in [0,1], any device. window: one of a ``plan``
        with ``HALO_PX``.
        check: as in ``forward``. Returns: (B,3,h,w), the inner part, on the model's device.
        """
        height, width = image_bchw.shape[-2:]
        top, bottom, left, right = window.outer
        below, beside = _padding(window, height, width)
        part = image_bchw[..., top:bottom, left:right].to(self._weight)
        guide = torch.add(part.new_tensor(-1.0), part, alpha=2.0)
        if below or beside:
            sides = (0, beside, 0, below)
            edge = self.config.edge_padding
            guide = F.pad(guide, sides, "replicate") if edge else F.pad(guide, sides, value=1.0)
        guide = self._oriented(guide).contiguous(memory_format=torch.channels_last)
        rows, columns = window.kept
        drawn = self._oriented(self._draw(guide, check))[..., rows, columns]
        # The clipped picture is this call's own, so it may become the result.
        return drawn * 0.5 + 0.5 if torch.is_grad_enabled() else drawn.mul_(0.5).add_(0.5)

    @property
    def _weight(self) -> Tensor:
        """One of the parameters, for where and in which type the network runs."""
        return next(self.parameters())

    def _oriented(self, picture: Tensor) -> Tensor:
        """From the picture's colour order and way up to the network's, and back."""
        dims = [1] * self.config.bgr + [2, 3] * self._turned
        return picture.flip(dims) if dims else picture

    def _kernel(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight = layer.weight.flip((2, 3)) if self._turned else layer.weight
        return weight, layer.bias

    def steps(self, window: Window, image_hw: tuple[int, int]) -> int:
        """How often ``window`` calls its ``check``, for a bar. image_hw: the picture's size, px."""
        below, beside = _padding(window, *image_hw)
        height, width = window.outer_hw
        strips = _strips(height + below, width + beside, self._weight.device)
        return 2 * len(strips) + len(self.blocks)

    def _draw(self, guide: Tensor, check: Callable[[], None]) -> Tensor:
        """(B,3,H,W) in [-1,1], H and W multiples of 4 -> the same, filtered and clipped."""
        full, half = self._encode(guide, check)
        x = self._conv(4, self._conv(3, half, stride=2))
        for block in self.blocks:
            assert isinstance(block, _Block)
            inner = convolve(x, *self._kernel(block.conv1))
            x = convolve_onto(x, inner, *self._kernel(block.conv2))
            check()
        return self._decode(guide, full, half, self._conv(5, x), check)

    def _encode(self, guide: Tensor, check: Callable[[], None]) -> tuple[list[Tensor], Tensor]:
        """Full-size features in strips, each with its own overlap, and the half-size ones."""
        full: list[Tensor] = []
        half: list[Tensor] = []
        for top, bottom, first, last in _strips_of(guide):
            # The 7x7 kernel looks 3 rows further, so that the overlap itself comes out right.
            above, below = max(0, first - 4), min(guide.shape[2], last + 4)
            x = self._conv(0, guide[:, :, above:below])[:, :, first - above : last - above]
            # An overlap of 6 rows begins on an even row, as the stride does.
            y = self._conv(1, x, stride=2)
            half.append(y[:, :, (top - first) // 2 : (bottom - first) // 2])
            full.append(x)
            check()
        return full, self._conv(2, torch.cat(half, 2))

    def _decode(
        self,
        guide: Tensor,
        full: list[Tensor],
        half: Tensor,
        quarter: Tensor,
        check: Callable[[], None],
    ) -> Tensor:
        """Features at full, half and quarter size -> the filtered picture in [-1,1]."""
        result = torch.empty_like(guide)
        for index, (top, bottom, first, last) in enumerate(_strips_of(guide)):
            # Two convolutions look one row each, up-sampling one; even rows for the level below.
            above, below = max(0, first // 2 - 4) // 2 * 2, min(half.shape[2], last // 2 + 4)
            y = half[:, :, above : below + below % 2].clone(memory_format=torch.preserve_format)
            y = self._conv(7, self._conv(6, self._up(y, above, quarter, 0)))
            # Taken out of the list, so that a strip's memory is there again for the next one.
            x, full[index] = full[index], guide
            x = self._conv(8, self._up(x, first, y, above))
            x = self._finish(guide[:, :, first:last], self._last(x))
            result[:, :, top:bottom] = x[:, :, top - first : bottom - first]
            check()
        return result

    def _finish(self, guide: Tensor, drawn: Tensor) -> Tensor:
        if self.config.tanh:
            drawn = drawn.tanh()
        if self.config.guided_filter:
            drawn = guided_filter(guide, drawn)
        return drawn.clamp(-_LIMIT, _LIMIT)

    def _conv(self, index: int, x: Tensor, *, stride: int = 1) -> Tensor:
        weight, bias = self._kernel(self.convs[index])
        around = weight.shape[-1] // 2
        return convolve(x, weight, bias, (around, around), stride)

    def _last(self, x: Tensor) -> Tensor:
        """The 7x7 convolution to three channels, computed on groups of neighbouring pixels."""
        weight, bias = self._kernel(self.convs[9])
        batch, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1).reshape(batch, height, width // _GROUP_PX, _GROUP_PX * channels)
        x = x.permute(0, 3, 1, 2)
        y = convolve(x, group_kernel(weight), bias.repeat(_GROUP_PX), (3, 1), act=False)
        y = y.permute(0, 2, 3, 1).reshape(batch, height, width, -1)
        return y.permute(0, 3, 1, 2)

    def _up(self, skip: Tensor, skip_row: int, x: Tensor, x_row: int) -> Tensor:
        """Add ``x`` at twice its size to ``skip``, in place.

        skip_row, x_row: which row of its level each one begins with.
        """
        if skip.requires_grad:
            skip = skip.clone()
        first, rows = skip_row // 2 - x_row, skip.shape[2] // 2
        before = min(1, first)
        if self.config.tf1_upsample:
            _add_upsampled_tf1(skip, x[:, :, first - before : first + rows])
        else:
            x = x[:, :, first - before : first + rows + 1]
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            skip.add_(x[:, :, 2 * before : 2 * (before + rows)])
        return skip


def _padding(window: Window, height: int, width: int) -> tuple[int, int]:
    """Rows below and columns beside that a window of a picture is padded with.

    Padding is the picture's: a window inside it ends on real neighbours, a multiple of the stride
    away from its start.
    """
    below = -height % PAD_MULTIPLE if window.outer[1] == height else 0
    beside = -width % PAD_MULTIPLE if window.outer[3] == width else 0
    return below, beside


def _strips_of(guide: Tensor) -> list[tuple[int, int, int, int]]:
    return _strips(guide.shape[2], guide.shape[3], guide.device)


def _strips(height: int, width: int, device: torch.device) -> list[tuple[int, int, int, int]]:
    """Even strips as rows (top, bottom, first, last): what one yields and, wider, what it holds."""
    least = _LEAST_STRIP_BYTES.get(device.type, _LEAST_STRIP_BYTES_ELSEWHERE)
    most = max(least, _STRIP_BYTES_PER_PX * height * width) // (width * _FEATURE_BYTES)
    count = max(1, -(-height // max(4 * _OVERLAP, most)))
    rows = -(-height // (4 * count)) * 4
    return [
        (top, min(height, top + rows), max(0, top - _OVERLAP), min(height, top + rows + _OVERLAP))
        for top in range(0, height, rows)
    ]


def _add_upsampled_tf1(skip: Tensor, x: Tensor) -> None:
    """TensorFlow 1's bilinear up-sampling, turned: odd pixels copy, even ones are the mean of two.

    skip: (B,C,H,W), changed. x: (B,C,H/2 or H/2+1,W/2), with the row before where there is one;
    the first row and column of the picture repeat.
    """
    if x.shape[2] == skip.shape[2] // 2:
        x = torch.cat((x[:, :, :1], x), 2)
    _add_upsampled_columns(skip[:, :, 1::2], x[:, :, 1:])
    _add_upsampled_columns(skip[:, :, ::2], torch.lerp(x[:, :, :-1], x[:, :, 1:], 0.5))


def _add_upsampled_columns(skip: Tensor, x: Tensor) -> None:
    skip[..., 1::2].add_(x)
    even = skip[..., ::2]
    even[..., :1].add_(x[..., :1])
    even[..., 1:].add_(x[..., :-1], alpha=0.5).add_(x[..., 1:], alpha=0.5)


def group_kernel(weight: Tensor) -> Tensor:
    """A 7x7 kernel for pixels taken in groups of four along a row.

    weight: (O,I,7,7). Returns: (4O,4I,7,3), channels-last; the group before, the group itself and
    the group behind cover all that any of its four pixels can see.
    """
    out_channels, in_channels, height, width = weight.shape
    kernel = weight.new_zeros(_GROUP_PX, out_channels, _GROUP_PX, in_channels, height, 3)
    for pixel in range(_GROUP_PX):
        for tap in range(width):
            group, member = divmod(pixel + tap - width // 2, _GROUP_PX)
            kernel[pixel, :, member, :, :, group + 1] = weight[..., tap]
    kernel = kernel.reshape(_GROUP_PX * out_channels, _GROUP_PX * in_channels, height, 3)
    return kernel.contiguous(memory_format=torch.channels_last)


def guided_filter(guide: Tensor, x: Tensor) -> Tensor:
    """Smooth ``x`` along the edges of ``guide``, 3x3 windows that end at the border.

    guide, x: (B,C,H,W), the same shape; fastest in channels-last order. Returns: the same shape.
    Source: Kaiming He et al., Guided Image Filtering, 2010; radius 1 as DCT-Net's graphs have it.
    """
    if torch.is_grad_enabled():
        return _filter_rows(guide, x)
    height = x.shape[2]
    result = torch.empty_like(x, memory_format=torch.channels_last)
    # A few rows at a time stay in the processor's cache through all the passes.
    rows = _FILTER_ROWS if x.device.type == "cpu" else height
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        first, last = max(0, top - 2), min(height, bottom + 2)
        y = _filter_rows(guide[:, :, first:last], x[:, :, first:last])
        result[:, :, top:bottom] = y[:, :, top - first : bottom - first]
    return result


def _filter_rows(guide: Tensor, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape

    def rows(t: Tensor) -> Tensor:
        # A row of pixels with their channels is one run of memory: shifting it by `channels`
        # reaches the neighbouring pixel, whatever the number of channels.
        return t.permute(0, 2, 3, 1).reshape(batch, height, width * channels)

    share = _shares(height, x)[:, None] * _shares(width, x).repeat_interleave(channels)
    guide, x = rows(guide), rows(x)
    mean_guide, mean_x = _box(guide, channels, share), _box(x, channels, share)
    variance = _box(guide * guide, channels, share).addcmul_(mean_guide, mean_guide, value=-1.0)
    slope = _box(guide * x, channels, share).addcmul_(mean_guide, mean_x, value=-1.0)
    slope = slope.div_(variance.add_(_FILTER_EPS))
    offset = mean_x.addcmul_(slope, mean_guide, value=-1.0)
    y = _box(offset, channels, share).addcmul_(_box(slope, channels, share), guide)
    return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _shares(length: int, like: Tensor) -> Tensor:
    """One over the number of neighbours, itself included, along one side of a picture."""
    count = like.new_full((length,), 3.0)
    count[0] -= 1
    count[-1] -= 1
    return 1.0 / count


def _box(rows: Tensor, step: int, share: Tensor) -> Tensor:
    """The mean of each value's 3x3 neighbours; ``step`` is the distance to the next pixel."""
    tall = rows.clone()
    tall[:, 1:] += rows[:, :-1]
    tall[:, :-1] += rows[:, 1:]
    wide = tall.clone()
    wide[..., step:] += tall[..., :-step]
    wide[..., :-step] += tall[..., step:]
    return wide.mul_(share)
