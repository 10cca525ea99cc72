"""ResultCaption in a real ComfyUI: the file, what is inside, and what the node says."""

from __future__ import annotations

import io
import json

import comfy_hosts
import graphs
import numpy as np
import pytest
from comfy_hosts import NONE
from graphs import Graph, photo
from PIL import ExifTags, Image
from realtoon.host import pictures

VALUES = {
    "cfg": 4.0,
    "steps": 40,
    "weight": "real_v3.safetensors",
    "note": "",
    "draw": "off",
    "filename_prefix": "caption/test",
    "format": "png",
}
CAPTION = "Resolution: 90×61 | CFG: 4.0 | Steps: 40 | Weight: real_v3.safetensors"
WORKFLOW = {"nodes": [], "title": "写实"}


def captioned(comfy, source, extra: dict | None = None, **values):  # noqa: ANN201
    """Runs LoadImage, ResultCaption; returns (job, its graph, files as bytes)."""
    graph = Graph()
    image = source if isinstance(source, list) else graph.load(comfy.upload(source))
    if isinstance(source, list):
        made = graph.add("EmptyImage", **dict(zip(("width", "height"), source, strict=True)),
                         batch_size=2, color=0x6688AA)  # fmt: skip
        image = [made, 0]
    graph.add("ResultCaption", image=image, **{**VALUES, **values})
    body = {"prompt": graph, **({"extra_data": {"extra_pnginfo": extra}} if extra else {})}
    status, answer = graphs.post(comfy, "/prompt", body)
    if status != 200:
        raise graphs.UserError(answer.decode("utf-8"), "")
    result = graphs.outcome(comfy, json.loads(answer)["prompt_id"])
    if isinstance(result, graphs.UserError):
        raise result
    data = [comfy.do(lambda client, f=file: client.download(f)) for file in result.files]
    return result, graph, data


def asked(text: str) -> dict:
    """The prompt in a file, without what newer and older hosts note in it as they run it."""
    graph = json.loads(text)
    for node in graph.values():
        node.pop("is_changed", None)
    return graph


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def test_the_caption_is_in_the_history_and_in_the_png(comfy) -> None:
    source = photo(90, 61)
    result, graph, [data] = captioned(comfy, source, {"workflow": WORKFLOW, "more": [1]})
    assert result.texts == [CAPTION]
    picture = opened(data)
    assert picture.tobytes() == source.tobytes()
    assert picture.text["Description"] == CAPTION
    assert asked(picture.text["prompt"]) == graph
    assert json.loads(picture.text["workflow"]) == WORKFLOW
    assert json.loads(picture.text["more"]) == [1]
    # Front ends that find this look no further for the workflow.
    assert "parameters" not in picture.text


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_the_caption_is_in_the_exif_of_others(comfy, kind: str) -> None:
    source = photo(90, 61)
    extra = {"workflow": WORKFLOW, "more": [1]}
    _, graph, [data] = captioned(comfy, source, extra, format=kind)
    picture = opened(data)
    assert picture.format == {"jpg": "JPEG", "webp": "WEBP"}[kind]
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(source))
    assert 0 < difference.mean() < 4
    exif = picture.getexif()
    assert exif[ExifTags.Base.ImageDescription] == CAPTION.replace("×", "x")
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b"UNICODE\x00" + CAPTION.encode("utf-16-be")
    assert "more:[1]" in exif.values()
    # As the command line reads pictures that come from a server.
    texts = pictures.texts_of(data)
    assert asked(texts["prompt"]) == graph
    assert json.loads(texts["workflow"]) == WORKFLOW
    assert "Steps: 40" in texts["Description"]


def test_a_prompt_without_a_workflow_is_enough(comfy) -> None:
    _, graph, [data] = captioned(comfy, photo(90, 61), note="no extra_pnginfo")
    texts = opened(data).text
    assert set(texts) == {"prompt", "Description"}
    assert asked(texts["prompt"]) == graph


def test_a_jpg_without_room_says_what_it_lost(comfy) -> None:
    extra = {"workflow": {"nodes": ["x" * 70_000]}}
    result, graph, [data] = captioned(comfy, photo(90, 61), extra, format="jpg")
    assert result.texts == [CAPTION, "no room in a JPG for: workflow; png and webp keep them"]
    texts = pictures.texts_of(data)
    assert "workflow" not in texts
    assert asked(texts["prompt"]) == graph
    assert "Steps: 40" in texts["Description"]


def test_a_strip_is_drawn_below_and_the_picture_goes_on_without(comfy) -> None:
    source = photo(90, 61)
    graph = Graph()
    values = {**VALUES, "draw": "below", "note": "写"}
    node = graph.add("ResultCaption", image=graph.load(comfy.upload(source)), **values)
    plain = graph.save([node, 0])
    shown = graph.add("PreviewAny", source=[node, 1])
    result = comfy.run(graph)
    found = graphs.saved(comfy, result)
    assert found[node][0].width == 90 and found[node][0].height > 61
    assert found[node][0].crop((0, 0, 90, 61)).tobytes() == source.tobytes()
    assert found[plain][0].tobytes() == source.tobytes()
    assert result.outputs[shown]["text"] == [CAPTION + " | 写"]
    assert result.outputs[node]["text"][0].startswith(CAPTION + " | 写")


def test_the_same_pixels_as_save_image(comfy) -> None:
    """Also of values between the steps of 8 bits."""
    graph = Graph()
    image = graph.load(comfy.upload(photo(90, 61)))
    soft = graph.add("ImageScale", image=image, upscale_method="bicubic", width=133, height=57,
                     crop="disabled")  # fmt: skip
    ours = graph.add("ResultCaption", image=[soft, 0], **VALUES)
    theirs = graph.save([soft, 0])
    found = graphs.saved(comfy, comfy.run(graph))
    assert found[ours][0].tobytes() == found[theirs][0].tobytes()


def test_files_are_counted_on_and_never_written_over(comfy) -> None:
    folder = comfy.server.base / "output" / "counted"
    source = photo(8, 8)
    names = []
    for kind in ("png", "jpg", "png"):
        result, _, _ = captioned(
            comfy, source, filename_prefix="counted/a", format=kind, note=str(len(names))
        )
        names += [file.filename for file in result.files]
        assert {file.subfolder for file in result.files} == {"counted"}
    assert names == ["a_00001_.png", "a_00002_.jpg", "a_00003_.png"]
    result, _, data = captioned(comfy, [8, 8], filename_prefix="counted/a%batch_num%b")
    assert [file.filename for file in result.files] == ["a0b_00001_.png", "a1b_00002_.png"]
    assert len(data) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, "a0b_00001_.png", "a1b_00002_.png"]
    ), "nothing else lies there"


def test_a_taken_number_is_skipped(comfy) -> None:
    """The host counts by names that end in the number and a line; others may be there all the
    same."""
    folder = comfy.server.base / "output" / "taken"
    folder.mkdir(parents=True)
    (folder / "x1y_00001_.png").write_bytes(b"mine")
    result, _, _ = captioned(comfy, [8, 8], filename_prefix="taken/x%batch_num%y")
    assert [file.filename for file in result.files] == ["x0y_00001_.png", "x1y_00002_.png"]
    assert (folder / "x1y_00001_.png").read_bytes() == b"mine"


def test_names_are_filled_in_by_the_host(comfy) -> None:
    result, _, _ = captioned(comfy, photo(90, 61), filename_prefix="%width%x%height%/%year%")
    assert result.files[0].subfolder == "90x61"
    assert result.files[0].filename[:2] == "20"


def test_a_way_out_of_the_folder_is_refused(comfy) -> None:
    with pytest.raises(graphs.UserError, match="outside the output folder"):
        captioned(comfy, photo(8, 8), filename_prefix="../../out")
    assert not list(comfy.server.base.parent.glob("out_*"))


@pytest.mark.parametrize("name", ["draw", "format"])
def test_a_value_that_no_list_offers_is_refused(comfy, name: str) -> None:
    with pytest.raises(graphs.UserError) as refusal:
        captioned(comfy, photo(8, 8), **{name: "gif"})
    assert name in str(refusal.value)


def test_what_is_unknown_is_left_out(comfy) -> None:
    result, _, _ = captioned(comfy, photo(8, 8), cfg=0.0, steps=0, weight="", sampler="euler/x")
    assert result.texts == ["Resolution: 8×8 | Sampler: euler/x"]


def test_alpha_and_grey_are_saved_as_rgb(comfy) -> None:
    graph = Graph()
    image = graph.load(comfy.upload(photo(40, 30)))
    half = graph.add("SolidMask", value=0.5, width=40, height=30)
    both = graph.add("JoinImageWithAlpha", image=image, alpha=[half, 0])
    node = graph.add("ResultCaption", image=[both, 0], **VALUES)
    result = comfy.run(graph)
    [picture] = graphs.saved(comfy, result)[node]
    assert picture.mode == "RGB"
    assert result.texts[1] == "alpha onto white"
    expected = np.asarray(photo(40, 30)) * 0.5 + 127.5
    assert np.abs(np.asarray(picture) - expected).max() <= 1.5


def sheet(comfy, graph: Graph, *sources, **values):
    """Adds a ResultCaption with these pictures side by side; returns its id."""
    links = [
        source if isinstance(source, list) else graph.load(comfy.upload(source))
        for source in sources
    ]
    more = {f"image_{number}": link for number, link in enumerate(links[1:], 2)}
    return graph.add("ResultCaption", image=links[0], **{**VALUES, **more, **values})


def told(weight: str, size: str = "90×61") -> str:
    return f"Resolution: {size} | CFG: 4.0 | Steps: 40" + (f" | Weight: {weight}" if weight else "")


def test_versions_lie_side_by_side_each_with_its_caption(comfy) -> None:
    first, second, third = photo(90, 61, 1), photo(70, 80, 2), photo(33, 20, 3)
    graph = Graph()
    names = {"weight": "a", "weight_2": "b", "weight_3": "c"}
    links = {key: [graph.add("PrimitiveString", value=name), 0] for key, name in names.items()}
    node = sheet(comfy, graph, first, second, third, draw="below", **links)
    alone = [
        graph.add("ResultCaption", image=graph.load(comfy.upload(picture)), **
                  {**VALUES, "draw": "below", "weight": name})
        for picture, name in ((first, "a"), (second, "b"), (third, "c"))
    ]  # fmt: skip
    passed_on, drawn = graph.save([node, 0]), graph.save([node, 2])
    shown = graph.add("PreviewAny", source=[node, 1])
    result = comfy.run(graph)
    found = graphs.saved(comfy, result)
    [out] = found[node]
    parts = [found[each][0] for each in alone]
    assert out.size == (90 + 70 + 33 + 2 * 4, max(part.height for part in parts))
    expected, left = Image.new("RGB", out.size, "white"), 0
    for part in parts:
        expected.paste(part, (left, 0))
        left += part.width + 4
    assert out.tobytes() == expected.tobytes()
    captions = "\n".join([told("a"), told("b", "70×80"), told("c", "33×20")])
    assert result.outputs[node]["text"] == [captions]
    assert result.outputs[shown]["text"] == [captions]
    [file] = [file for file in result.files if file.node_id == node]
    data = comfy.do(lambda client: client.download(file))
    assert opened(data).text["Description"] == captions
    assert found[passed_on][0].tobytes() == first.tobytes()
    assert found[drawn][0].tobytes() == out.tobytes()


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_other_formats_hold_all_the_captions(comfy, kind: str) -> None:
    graph = Graph()
    node = sheet(comfy, graph, photo(90, 61), photo(70, 61), format=kind, note=kind)
    result = comfy.run(graph)
    data = comfy.do(lambda client: client.download(result.files[0]))
    lines = [f"{told('real_v3.safetensors')} | {kind}", f"{told('', '70×61')} | {kind}"]
    assert result.outputs[node]["text"] == ["\n".join(lines)]
    assert opened(data).size == (164, 61)
    comment = opened(data).getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b"UNICODE\x00" + "\n".join(lines).encode("utf-16-be")


def test_two_may_be_the_first_and_the_third(comfy) -> None:
    graph = Graph()
    first, last = photo(20, 10, 1), photo(30, 10, 2)
    name = [graph.add("PrimitiveString", value="c"), 0]
    node = sheet(comfy, graph, first, image_3=graph.load(comfy.upload(last)), weight_3=name)
    result = comfy.run(graph)
    [out] = graphs.saved(comfy, result)[node]
    assert out.crop((0, 0, 20, 10)).tobytes() == first.tobytes()
    assert out.crop((24, 0, 54, 10)).tobytes() == last.tobytes()
    said = result.outputs[node]["text"][0].splitlines()
    assert said == [told("real_v3.safetensors", "20×10"), told("c", "30×10")]


def test_a_weight_without_its_picture_is_left_out_and_told(comfy) -> None:
    graph = Graph()
    name = [graph.add("PrimitiveString", value="b"), 0]
    nothing = [graph.add("PrimitiveString", value=""), 0]
    source = photo(90, 61)
    node = sheet(comfy, graph, source, weight="a", weight_2=name, weight_3=nothing)
    result = comfy.run(graph)
    assert result.outputs[node]["text"] == [
        f"{told('a')}\nno image_2 is joined: its weight is left out"
    ]
    assert graphs.saved(comfy, result)[node][0].tobytes() == source.tobytes()


def batch(graph: Graph, count: int, color: int, width: int = 8) -> list:
    made = graph.add("EmptyImage", width=width, height=6, batch_size=count, color=color)
    return [made, 0]


def test_batches_pair_by_number_and_one_stands_beside_each(comfy) -> None:
    three = [photo(8, 6, seed) for seed in range(3)]
    graph = Graph()
    first, second, third = (graph.load(comfy.upload(picture)) for picture in three)
    both = [graph.add("ImageBatch", image1=first, image2=second), 0]
    turned = [graph.add("ImageBatch", image1=second, image2=first), 0]
    node = sheet(comfy, graph, third, both, turned)
    found = graphs.saved(comfy, comfy.run(graph))[node]
    assert len(found) == 2
    for out, others in zip(found, ((0, 1), (1, 0)), strict=True):
        assert out.size == (8 * 3 + 4 * 2, 6)
        for left, number in zip((0, 12, 24), (2, *others), strict=True):
            assert out.crop((left, 0, left + 8, 6)).tobytes() == three[number].tobytes()


def test_batches_of_other_lengths_are_refused_before_a_file_is_written(comfy) -> None:
    graph = Graph()
    prefix = "caption/refused"
    sheet(comfy, graph, batch(graph, 3, 1), batch(graph, 2, 2), filename_prefix=prefix)
    with pytest.raises(
        graphs.UserError, match=r"image_2: expected 1 picture or 3.*got 2.*Next step"
    ):
        comfy.run(graph)
    assert not list((comfy.server.base / "output" / "caption").glob("refused*"))


def test_a_row_too_wide_for_webp_is_refused(comfy) -> None:
    graph = Graph()
    sheet(comfy, graph, *[batch(graph, 1, 0, width=5600)] * 3, format="webp")
    with pytest.raises(graphs.UserError, match="at most 16383 px a side for webp.*choose png"):
        comfy.run(graph)


def test_a_host_told_to_write_no_metadata_writes_none() -> None:
    hosts = comfy_hosts.at_hand()
    if not hosts:
        pytest.skip(NONE)
    with comfy_hosts.started(hosts[0], extra_arguments=("--disable-metadata",)) as comfy:
        for kind in ("png", "jpg", "webp"):
            result, _, [data] = captioned(
                comfy, photo(90, 61), {"workflow": WORKFLOW}, format=kind, note=kind
            )
            assert result.texts == [f"{CAPTION} | {kind}"]
            assert pictures.texts_of(data) == {}
            assert not opened(data).getexif()
