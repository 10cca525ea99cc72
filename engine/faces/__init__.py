"""Faces in a picture: where they are, and how to cut them out and put them back."""

from .align import invert, paste_region, similarity, warp
from .detect import Face, detect, select
from .mtcnn import MTCNN

__all__ = [
    "MTCNN",
    "Face",
    "detect",
    "invert",
    "paste_region",
    "select",
    "similarity",
    "warp",
]
