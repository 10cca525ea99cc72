"""PrepareImage in a real ComfyUI."""

from __future__ import annotations

import graphs
import pytest
from graphs import Graph, photo, saved
from PIL import Image


def prepare(comfy, name: str, *, masked: bool = False, **inputs):  # noqa: ANN001, ANN201
    """Runs LoadImage, PrepareImage, SaveImage; returns (picture, report)."""
    graph = Graph()
    loaded = graph.load(name)
    values = {"max_side": 1024, "multiple_of": 1, "background": "white", **inputs}
    if masked:
        values["mask"] = [loaded[0], 1]
    graph.save([graph.add("PrepareImage", image=loaded, **values), 0])
    result = comfy.run(graph)
    [[picture]] = saved(comfy, result).values()
    return picture, " ".join(result.texts)


@pytest.mark.parametrize(
    ("size", "inputs", "expected", "said"),
    [
        ((1536, 1024), {}, (1024, 683), "scaled to 1024×683, 66.7 %"),
        ((1536, 1024), {"multiple_of": 16}, (1024, 688), "padded to 1024×688"),
        ((640, 480), {"multiple_of": 32}, (640, 480), "640×480"),
        ((1, 1), {"multiple_of": 8}, (8, 8), "padded to 8×8"),
        ((17, 1100), {"max_side": 0}, (17, 1100), "17×1100"),
    ],
)
def test_size_and_report(comfy, size, inputs, expected, said) -> None:
    picture, report = prepare(comfy, comfy.upload(photo(*size)), **inputs)
    assert picture.size == expected
    assert said in report


def test_nothing_to_do_changes_nothing(comfy) -> None:
    source = photo(90, 61)
    picture, _ = prepare(comfy, comfy.upload(source))
    assert picture.tobytes() == source.tobytes()


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("grey", 128)])
def test_transparency_goes_onto_the_background(comfy, background: str, level: int) -> None:
    source = photo(64, 40).convert("RGBA")
    source.paste((255, 0, 255, 0), (0, 0, 30, 40))
    picture, report = prepare(
        comfy, comfy.upload(source), masked=True, background=background, max_side=0
    )
    assert picture.mode == "RGB"
    assert all(abs(v - level) <= 1 for v in picture.getpixel((10, 10)))
    assert picture.getpixel((50, 10)) == source.getpixel((50, 10))[:3]
    assert f"alpha onto {background}" in report


def test_a_picture_without_transparency_ignores_its_mask(comfy) -> None:
    """LoadImage hands out a 64×64 mask then, whatever the picture's shape."""
    source = photo(50, 200)
    picture, _ = prepare(comfy, comfy.upload(source), masked=True)
    assert picture.tobytes() == source.tobytes()


def test_a_mask_of_another_picture_is_refused_with_the_next_step(comfy) -> None:
    stranger = Image.new("RGBA", (40, 200), (0, 0, 0, 0))
    graph = Graph()
    image, other = graph.load(comfy.upload(photo(80, 50))), graph.load(comfy.upload(stranger))
    values = {"max_side": 0, "multiple_of": 1, "background": "white", "mask": [other[0], 1]}
    graph.save([graph.add("PrepareImage", image=image, **values), 0])
    error = graphs.outcome(comfy, comfy.do(lambda client: client.submit(graph)))
    assert "80×50" in str(error) and "40×200" in str(error) and "Next step" in str(error)


@pytest.mark.parametrize("value", [{"multiple_of": 7}, {"max_side": -1}, {"background": "pink"}])
def test_wrong_values_are_refused_before_the_run(comfy, value: dict) -> None:
    with pytest.raises(graphs.UserError, match="refused") as refusal:
        prepare(comfy, comfy.upload(photo(8, 8)), **value)
    assert next(iter(value)) in str(refusal.value)


def test_it_feeds_the_cartoon(comfy) -> None:
    graph = Graph()
    values = {"max_side": 96, "multiple_of": 1, "background": "white"}
    prepared = graph.add("PrepareImage", image=graph.load(comfy.upload(photo(300, 200))), **values)
    style = graphs.put_style(comfy, "random")
    graph.save([graph.cartoon([prepared, 0], style), 0])
    [[picture]] = saved(comfy, comfy.run(graph)).values()
    assert picture.size == (96, 64)
