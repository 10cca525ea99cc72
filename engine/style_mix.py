"""How much of a style reaches the picture, and how hard its lines are."""

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

LINE_SIGMA_PX = 3.0
"""Half-width of what counts as a line: finer changes are the style's high band."""

LINE_RADIUS_PX = 9
"""How far ``mix`` looks for a ``crispness`` other than 1."""


def mix(
    source: Tensor,
    drawn: Tensor,
    *,
    strength: float,
    crispness: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Add the style's difference R = drawn - source to the source.

    source, drawn: (B,3,H,W) in [0,1]. strength: 0 gives the source and 1 the network's output, bit
    for bit; between them the result is source + strength * R. crispness: gain on R's high band,
    which holds lines and hard tone steps; its low band, tone and colour, stays. 1 leaves R alone.
    mask: (B or 1,1,H,W) in [0,1], where to draw. Returns: (B,3,H,W) in [0,1].
    """
    if strength == 0.0:
        return source
    if crispness != 1.0:
        difference = drawn - source
        low = _blur(difference)
        drawn = torch.add(low, difference.sub_(low), alpha=crispness).add_(source).clamp_(0.0, 1.0)
    mixed = drawn if strength == 1.0 else torch.lerp(source, drawn, strength)
    if mask is None:
        return mixed
    # Chosen where the mask is all or nothing, so that rounding does not touch what is left alone.
    blended = torch.lerp(source, mixed, mask)
    return torch.where(mask <= 0.0, source, torch.where(mask >= 1.0, mixed, blended))


def _blur(x: Tensor) -> Tensor:
    """Gaussian blur of ``LINE_SIGMA_PX``; the border repeats."""
    radius = LINE_RADIUS_PX
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    taps = torch.exp(-0.5 * (offsets / LINE_SIGMA_PX) ** 2)
    taps = (taps / taps.sum()).to(x.dtype)
    batch, channels, height, width = x.shape
    planes = x.reshape(batch * channels, 1, height, width)
    padded = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
    tall = F.conv2d(padded, taps.view(1, 1, -1, 1))
    return F.conv2d(tall, taps.view(1, 1, 1, -1)).reshape(x.shape)
