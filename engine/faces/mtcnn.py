"""The three networks of the cascaded face detector.

Source: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", IEEE Signal Processing Letters 2016. The state-dict names are those of the files that
facenet-pytorch 2.6.0 carries, under ``pnet.``, ``rnet.`` and ``onet.``.
"""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

PNET_WINDOW_PX = 12
PNET_STRIDE_PX = 2
RNET_INPUT_PX = 24
ONET_INPUT_PX = 48


def _face_logit(pair: Tensor) -> Tensor:
    return pair[:, 1] - pair[:, 0]


def _flatten_column_major(features: Tensor) -> Tensor:
    # The published weights were trained in a column-major framework: width varies slowest.
    return features.permute(0, 3, 2, 1).flatten(1)


class ProposalNet(nn.Module):
    """Looks at every 12×12 window, two pixels apart.

    forward: (B,3,H,W) float in [-1,1], H and W at least 11. Returns the face probability (B,h,w)
    and the box offsets (B,4,h,w) as fractions of the window, with h = ceil((H-2)/2) - 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, window_bchw: Tensor) -> tuple[Tensor, Tensor]:
        x = self.prelu1(self.conv1(window_bchw))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return _face_logit(self.conv4_1(x)).sigmoid(), self.conv4_2(x)


class RefineNet(nn.Module):
    """Judges 24×24 crops.

    forward: (N,3,24,24) float in [-1,1]. Returns the face probability (N,) and the box offsets
    (N,4) as fractions of the crop's side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(576, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(crops)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_flatten_column_major(x)))
        return _face_logit(self.dense5_1(x)).sigmoid(), self.dense5_2(x)


class OutputNet(nn.Module):
    """Judges 48×48 crops and finds five points on each.

    forward: (N,3,48,48) float in [-1,1]. Returns the face's log odds (N,), the box offsets (N,4)
    and the points (N,5,2) as x,y; offsets and points are fractions of the crop's side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(1152, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(crops)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_flatten_column_major(x)))
        # Five x, then five y.
        points = self.dense6_3(x).unflatten(1, (2, 5)).transpose(1, 2)
        return _face_logit(self.dense6_1(x)), self.dense6_2(x), points


class MTCNN(nn.Module):
    """The cascade's networks under one roof; :func:`detect` runs them on a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet = ProposalNet()
        self.rnet = RefineNet()
        self.onet = OutputNet()
