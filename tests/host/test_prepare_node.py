"""PrepareImage in a real ComfyUI."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from graphs import Graph, photo, saved
from PIL import Image, ImageFilter


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
        ((1536, 1024), {"multiple_of": 16, "fit": "crop"}, (1024, 672), "cut to 1024×672"),
        ((9, 40), {"multiple_of": 16, "fit": "crop"}, (16, 32), "cut to 9×32; padded to 16×32"),
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


OFF = {"fit": "pad", "depth_compensation": 0.0, "denoise": 0.0, "smooth": 0.0}


def test_the_later_inputs_are_off_unless_they_are_named(comfy) -> None:
    name = comfy.upload(photo(150, 100, seed=3))
    plain, plain_report = prepare(comfy, name, max_side=90, multiple_of=16)
    named, named_report = prepare(comfy, name, max_side=90, multiple_of=16, **OFF)
    assert plain.tobytes() == named.tobytes()
    assert plain_report == named_report


def noisy(picture: Image.Image, sigma: float) -> Image.Image:
    values = np.asarray(picture).astype(np.float32)
    values += np.random.default_rng(0).normal(0, sigma * 255, values.shape)
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def distance(picture: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(picture).astype(float) - np.asarray(other)).mean())


def test_denoise_takes_noise_out(comfy) -> None:
    clean = photo(220, 160)
    source = noisy(clean, 0.05)
    made, report = prepare(comfy, comfy.upload(source), denoise=1.0)
    assert distance(made, clean) < 0.5 * distance(source, clean)
    assert "denoised 1" in report


def test_smooth_evens_out(comfy) -> None:
    clean = photo(220, 160)
    source = noisy(clean, 0.02)
    made, report = prepare(comfy, comfy.upload(source), smooth=0.8)
    assert distance(made, clean) < 0.6 * distance(source, clean)
    assert "smoothed 0.8" in report


def test_depth_compensation_sharpens_what_is_soft(comfy) -> None:
    clean = Image.new("RGB", (200, 150), (60, 80, 90))
    for left in range(10, 200, 40):
        clean.paste((200, 180, 150), (left, 0, left + 20, 150))
    source = clean.filter(ImageFilter.GaussianBlur(2))
    made, report = prepare(comfy, comfy.upload(source), depth_compensation=1.0)
    assert distance(made, clean) < 0.8 * distance(source, clean)
    assert "depth compensated 1" in report
    sharp, _ = prepare(comfy, comfy.upload(clean), depth_compensation=1.0)
    assert distance(sharp, clean) < 0.1


def test_a_picture_does_not_depend_on_its_batch(comfy) -> None:
    graph = Graph()
    values = {"max_side": 80, "multiple_of": 16, "background": "white"}
    amounts = {"fit": "crop", "depth_compensation": 1.0, "denoise": 1.0, "smooth": 0.5}
    sources = [graph.load(comfy.upload(noisy(photo(120, 90, seed), 0.05))) for seed in (1, 2)]
    both = graph.add("ImageBatch", image1=sources[0], image2=sources[1])
    ids = [
        graph.save([graph.add("PrepareImage", image=source, **values, **amounts), 0])
        for source in ([both, 0], *sources)
    ]
    pictures = saved(comfy, comfy.run(graph))
    together = pictures[ids[0]]
    assert len(together) == 2
    for picture, save_id in zip(together, ids[1:], strict=True):
        assert picture.tobytes() == pictures[save_id][0].tobytes()


@pytest.mark.parametrize(
    "value",
    [
        {"multiple_of": 7},
        {"max_side": -1},
        {"background": "pink"},
        {"fit": "squash"},
        {"denoise": 1.5},
    ],
)
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
