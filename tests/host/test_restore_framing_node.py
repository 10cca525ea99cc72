"""RestoreFraming in a real ComfyUI."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from graphs import Graph, photo, saved
from PIL import Image

PREPARED = {"max_side": 96, "multiple_of": 16, "background": "white"}


def restored(comfy, source, *, size="prepared", between=None, **prepare):  # noqa: ANN001, ANN201
    """Runs PrepareImage, a node in between, RestoreFraming; returns (before, after, report)."""
    graph = Graph()
    prepared = graph.add(
        "PrepareImage", image=graph.load(comfy.upload(source)), **{**PREPARED, **prepare}
    )
    image = [prepared, 0]
    if between:
        kind, values = between
        image = [graph.add(kind, image=image, **values), 0]
    back = graph.add("RestoreFraming", image=image, framing=[prepared, 2], size=size)
    first, last = graph.save([prepared, 0]), graph.save([back, 0])
    result = comfy.run(graph)
    pictures = saved(comfy, result)
    return pictures[first][0], pictures[last][0], " ".join(result.texts)


def by(factor: float, method: str = "nearest-exact"):  # noqa: ANN201
    return "ImageScaleBy", {"upscale_method": method, "scale_by": factor}


def test_the_padding_is_cut_off_exactly(comfy) -> None:
    source = photo(90, 61)
    before, after, report = restored(comfy, source)
    assert before.size == (96, 64)
    assert after.tobytes() == source.tobytes()
    assert "cut from 96×64 to 90×61" in report


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (37, 640), (300, 7), (199, 133)])
def test_original_has_the_sources_size(comfy, size: tuple[int, int]) -> None:
    _, after, _ = restored(comfy, photo(*size), size="original")
    assert after.size == size


def test_original_lies_on_the_source(comfy) -> None:
    source = photo(310, 205)
    _, after, report = restored(comfy, source, size="original")
    difference = np.abs(np.asarray(after).astype(int) - np.asarray(source))
    # Soft enough to survive the way to a third of the size and back.
    assert difference.mean() < 1.5
    assert "scaled from 96×63 to 310×205" in report


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_an_enlarged_picture_is_cut_in_proportion(comfy, factor: float) -> None:
    source = photo(90, 61)
    _, after, _ = restored(comfy, source, between=by(factor))
    size = (int(90 * factor), int(61 * factor))
    assert after.tobytes() == source.resize(size, Image.Resampling.NEAREST).tobytes()


def test_a_fractional_factor_still_gives_the_original_size(comfy) -> None:
    source = photo(310, 205)
    _, after, _ = restored(comfy, source, size="original", between=by(1.3, "lanczos"))
    assert after.size == source.size
    difference = np.abs(np.asarray(after).astype(int) - np.asarray(source))
    assert difference.mean() < 2.5


def test_what_was_cut_does_not_come_back_and_the_report_says_so(comfy) -> None:
    source = photo(90, 61)
    _, after, _ = restored(comfy, source, fit="crop")
    assert after.tobytes() == source.crop((5, 6, 85, 54)).tobytes()
    _, after, report = restored(comfy, source, fit="crop", size="original")
    assert after.size == (80, 48)
    assert "does not come back" in report


def test_other_proportions_are_refused_with_the_next_step(comfy) -> None:
    crop = ("ImageCrop", {"width": 80, "height": 64, "x": 0, "y": 0})
    with pytest.raises(graphs.UserError) as refusal:
        restored(comfy, photo(90, 61), between=crop)
    assert "80×64" in str(refusal.value)
    assert "expected 96×64" in str(refusal.value)
    assert "Next step" in str(refusal.value)


def test_a_wrong_size_is_refused_before_the_run(comfy) -> None:
    graph = Graph()
    prepared = graph.add("PrepareImage", image=graph.load(comfy.upload(photo(20, 20))), **PREPARED)
    values = {"image": [prepared, 0], "framing": [prepared, 2], "size": "larger"}
    graph.save([graph.add("RestoreFraming", **values), 0])
    with pytest.raises(graphs.UserError, match="refused") as refusal:
        comfy.run(graph)
    assert "size" in str(refusal.value)


def test_a_batch_is_cut_as_one(comfy) -> None:
    graph = Graph()
    sources = [photo(50, 41, seed) for seed in (1, 2)]
    images = [graph.load(comfy.upload(source)) for source in sources]
    both = graph.add("ImageBatch", image1=images[0], image2=images[1])
    prepared = graph.add("PrepareImage", image=[both, 0], **PREPARED)
    back = graph.add("RestoreFraming", image=[prepared, 0], framing=[prepared, 2], size="prepared")
    graph.save([back, 0])
    [pictures] = saved(comfy, comfy.run(graph)).values()
    assert [p.tobytes() for p in pictures] == [s.tobytes() for s in sources]
