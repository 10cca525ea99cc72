"""ParseNet: which part of an aligned face is skin, hair, hat, cloth or background.

Source: yangxy/GPEN @2c73670, ``face_parse/parse_model.py`` and ``blocks.py``, with the settings of
``face_parsing.py``: 512 px, base 64, 32 to 256 channels, ten residual blocks, 19 classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

PARSE_PX = 512
CLASSES = 19
HIDDEN_CLASSES = (0, 14, 18)
"""Background, hat and cloth: not part of a face."""

_SLOPE = 0.2
_DOWN = ((64, 128), (128, 256), (256, 256), (256, 256))
_UP = ((256, 256), (256, 256), (256, 128), (128, 64))
_BODY = 10
_WIDTH = 256


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)


class _Conv(nn.Module):
    """3x3 on a reflected border, at half, the same or twice the size."""

    def __init__(
        self, in_channels: int, out_channels: int, scale: str = "", norm: bool = False
    ) -> None:
        super().__init__()
        self.up = scale == "up"
        stride = 2 if scale == "down" else 1
        self.conv2d = nn.Conv2d(in_channels, out_channels, 3, stride, bias=not norm)
        if norm:
            self.norm = _Norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"))
        return self.norm.norm(x) if hasattr(self, "norm") else x


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, scale: str = "") -> None:
        super().__init__()
        if scale:
            self.shortcut_func = _Conv(in_channels, out_channels, scale)
        first, second = ("up", "") if scale == "up" else ("", scale)
        self.conv1 = _Conv(in_channels, out_channels, first, norm=True)
        self.conv2 = _Conv(out_channels, out_channels, second, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.shortcut_func(x) if hasattr(self, "shortcut_func") else x
        return skip + self.conv2(F.leaky_relu(self.conv1(x), _SLOPE))


class ParseNet(nn.Module):
    """The parser. ``state_dict`` has the published names, the picture it can also draw included."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_Conv(3, 64), *(_Block(i, o, "down") for i, o in _DOWN))
        self.body = nn.Sequential(*(_Block(_WIDTH, _WIDTH) for _ in range(_BODY)))
        self.decoder = nn.Sequential(*(_Block(i, o, "up") for i, o in _UP))
        self.out_img_conv = _Conv(64, 3)
        self.out_mask_conv = _Conv(64, CLASSES)

    @classmethod
    def with_weights(cls, tensors: Mapping[str, Tensor]) -> "ParseNet":
        """The network with these tensors, ready to run.

        tensors: by the published names; counts of training batches may be left out.
        Raises: RuntimeError where another name or a shape is missing or too many.
        """
        with torch.device("meta"):
            net = cls()
        counts = {
            name: torch.zeros((), dtype=torch.int64)
            for name in net.state_dict()
            if name.endswith("num_batches_tracked")
        }
        net.load_state_dict({**counts, **tensors}, strict=True, assign=True)
        return net.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    def forward(self, faces_bchw: Tensor) -> Tensor:
        """Score the classes of each pixel.

        faces_bchw: (B,3,512,512) RGB in [-1,1]. Returns: (B,19,512,512), the largest wins.
        """
        x = faces_bchw.to(self.out_mask_conv.conv2d.weight)
        x = self.encoder(x.contiguous(memory_format=torch.channels_last))
        return self.out_mask_conv(self.decoder(x + self.body(x)))

    def shown(self, faces_bchw: Tensor) -> Tensor:
        """Which pixels belong to the face.

        faces_bchw: (B,3,S,S) RGB in [0,1]. Returns: (B,1,S,S), between 0 and 1 where S is not 512.
        """
        size = faces_bchw.shape[-1]
        x = faces_bchw
        if size != PARSE_PX:
            x = F.interpolate(x, size=(PARSE_PX, PARSE_PX), mode="bilinear", antialias=True)
        classes = self(x * 2.0 - 1.0).argmax(1, keepdim=True)
        hidden = torch.tensor(HIDDEN_CLASSES, device=classes.device)
        shown = (~torch.isin(classes, hidden)).float()
        if size == PARSE_PX:
            return shown
        return F.interpolate(shown, size=(size, size), mode="bilinear", antialias=True)
