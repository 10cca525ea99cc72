"""A run of GPENRestore over a batch of pictures: what to restore, and where it goes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine import restore
from ..engine.faces import select
from ..engine.faces.detect import Order
from ..engine.kept import content_key
from ..weights_loader.errors import WeightsError
from . import _faces, _gpen, _host


class Job:
    """One run over a batch of pictures; its results so far."""

    def __init__(
        self,
        image_bchw: Tensor,
        keep: Tensor | None,
        strength: float,
        skin_smooth: float,
        generator: _gpen.Generator,
    ) -> None:
        self._image = image_bchw
        self._keep = keep
        self._look = (strength, skin_smooth)
        self._generator = generator
        self._run = _gpen.Run()
        self._squares: list[Tensor] = []
        self.out_bchw = image_bchw
        self.mask_b1hw = torch.zeros(len(image_bchw), 1, *image_bchw.shape[2:])

    def faces(self, max_faces: int, order: Order, min_face_px: int) -> str:
        """Restore faces. Returns: what to say. Raises: WeightsError without a detector."""
        detector = _faces.detector_path()
        if detector is None:
            raise WeightsError(
                _host.first_model_folder(_host.FACES_FOLDER),
                "the face detector",
                "none",
                f"{_faces.missing_detector()}; or set mode to tiled",
            )
        keys = [content_key(self._image[i : i + 1]) for i in range(len(self._image))]
        found = [
            _gpen.find_faces(detector, self._image[i : i + 1], key, min_face_px)
            for i, key in enumerate(keys)
        ]
        picked = [select(each, max_faces, min_face_px, order) for each in found]
        count = sum(map(len, picked))
        progress = _host.Progress(count)
        shown = _gpen.face_shown(self._run)
        if count:
            self.out_bchw = self._image.clone()
        for index, (faces, key) in enumerate(zip(picked, keys, strict=True)):
            squares = [restore.face_square(face, self._generator.size) for face in faces]
            self._restore_faces(index, squares, (key, self._run.parser_state), shown, progress)
        parser = "no parser, soft rectangle" if self._run.parser is None else "parsed by ParseNet"
        told = _faces.counted(count, sum(map(len, found)))
        return f"{told}{self._kept()}{'; mask: ' + parser if count else ''}"

    def _restore_faces(
        self,
        index: int,
        squares: list[Tensor],
        key: object,
        shown: Callable[[Tensor, Tensor], Tensor],
        progress: _host.Progress,
    ) -> None:
        image, blend = self._image[index : index + 1], self._blend(index)
        total = restore.FaceSum(
            image, blend, self.out_bchw[index : index + 1], self.mask_b1hw[index, 0]
        )
        made: dict[int, Tensor] = {}
        for place, face in _gpen.restored(
            self._generator, image, squares, shown, key, self._run, progress.step
        ):
            made[place] = restore.finished(face, image, blend.skin_smooth)
            total.add(face, made[place], _host.check_interrupted)
        self._squares.extend(made[place] for place in sorted(made))

    def tiled(self, tile_px: int, overlap_px: int) -> str:
        """Restore whole pictures in tiles. Returns: what to say."""
        height, width = self._image.shape[2:]
        size = self._generator.size
        squares = restore.tile_squares(height, width, size, tile_px, overlap_px)
        progress = _host.Progress(len(squares) * len(self._image))
        self.out_bchw = torch.empty_like(self._image)
        self.mask_b1hw.fill_(1.0)

        def shown(to_square: Tensor, _: Tensor) -> Tensor:
            return restore.tile_mask(to_square, size, (height, width), overlap_px)

        for index in range(len(self._image)):
            image, blend = self._image[index : index + 1], self._blend(index)
            total, made = restore.TileSum((height, width)), {}
            key = (content_key(image), tile_px, overlap_px)
            for place, tile in _gpen.restored(
                self._generator, image, squares, shown, key, self._run, progress.step
            ):
                made[place] = restore.finished(tile, image, blend.skin_smooth)
                total.add(tile, made[place], _host.check_interrupted)
            total.paste(image, blend, self.out_bchw[index : index + 1])
            self._squares.extend(made[place] for place in sorted(made))
        return f"{len(squares)} of {tile_px} px{self._kept()}"

    def squares_bchw(self) -> Tensor:
        """All restored squares, or a black one where there is none."""
        if self._squares:
            return torch.cat(self._squares)
        return torch.zeros(1, 3, self._generator.size, self._generator.size)

    def _blend(self, index: int) -> restore.Blend:
        keep = self._keep
        if keep is not None:
            index = 0 if len(keep) == 1 else index
            keep = keep[index : index + 1]
        return restore.Blend(*self._look, keep=keep)

    def _kept(self) -> str:
        run = self._run
        return f" ({run.from_before} kept from before)" if run.from_before else ""
