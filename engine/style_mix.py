"""How much of a style reaches the picture, and how hard its lines are."""

import torch
from torch import Tensor

from .blur import gaussian_blur

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
        low = gaussian_blur(difference, LINE_SIGMA_PX, LINE_RADIUS_PX)
        drawn = torch.add(low, difference.sub_(low), alpha=crispness).add_(source).clamp_(0.0, 1.0)
    mixed = drawn if strength == 1.0 else torch.lerp(source, drawn, strength)
    if mask is None:
        return mixed
    # Chosen where the mask is all or nothing, so that rounding does not touch what is left alone.
    blended = torch.lerp(source, mixed, mask)
    return torch.where(mask <= 0.0, source, torch.where(mask >= 1.0, mixed, blended))
