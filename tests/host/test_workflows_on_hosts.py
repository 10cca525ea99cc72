"""The shipped workflows on a real ComfyUI: every node known, and the pictures that they promise."""

import re

import numpy as np
import pytest
import workflow_files as wf
from graphs import detector, put_gpen, put_qwen
from PIL import Image
from realtoon.host import pictures, workflow
from realtoon.host.errors import UserError
from realtoon.weights_loader import qwen_tiny

# Set by people; which files there are differs from machine to machine.
OPEN_CHOICES = {
    ("LoadImage", "image"),
    ("GPENRestore", "model"),
    ("LoRAHotInject", "lora"),
    ("QwenEditLoader", "base"),
    ("QwenEditLoader", "text_encoder"),
    ("QwenEditLoader", "vae"),
}


@pytest.fixture(scope="module")
def object_info(comfy):
    return comfy.do(lambda client: client.object_info())


@pytest.fixture(params=wf.NAMES)
def name(request):
    return request.param


def inputs_of(info):
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def choices_of(given):
    """What a combo offers, None for other inputs."""
    kind, *rest = given
    return kind if isinstance(kind, list) else (rest[0] if rest else {}).get("options")


def test_no_node_is_missing(object_info, name):
    kinds = {node["type"] for node in wf.load(name)["nodes"]} - set(wf.VIRTUAL)
    assert kinds <= set(object_info)


def test_twin_is_what_this_host_reads_in_the_file(object_info, name):
    assert wf.ui_to_api(wf.load(name), object_info) == wf.load_twin(name)


def test_no_input_is_missing_or_unknown(object_info, name):
    for node in wf.load_twin(name).values():
        info = object_info[node["class_type"]]
        assert set(node["inputs"]) <= set(inputs_of(info)), node["_meta"]["title"]
        assert set(info["input"]["required"]) <= set(node["inputs"]), node["_meta"]["title"]


def test_choices_are_those_of_this_host(object_info, name):
    for node in wf.load_twin(name).values():
        for given, value in node["inputs"].items():
            choices = choices_of(inputs_of(object_info[node["class_type"]])[given])
            if choices is None or isinstance(value, list):
                continue
            if (node["class_type"], given) not in OPEN_CHOICES:
                assert value in choices, f"{node['_meta']['title']}.{given}"


def test_wires_have_this_hosts_types(object_info, name):
    twin = wf.load_twin(name)
    for node in twin.values():
        for given, value in node["inputs"].items():
            if isinstance(value, list):
                origin, slot = value
                wanted = inputs_of(object_info[node["class_type"]])[given]
                sent = object_info[twin[origin]["class_type"]]["output"][slot]
                if isinstance(sent, list):
                    # An output that sends values of a list, to an input that offers all of them.
                    assert set(sent) <= set(choices_of(wanted))
                else:
                    assert sent == wanted[0]


def test_ports_stand_where_the_file_says(object_info, name):
    """Slots are joined by number: a port that moves joins the wrong things without a word."""
    for node in wf.load(name)["nodes"]:
        if node["type"] in wf.VIRTUAL:
            continue
        outputs = object_info[node["type"]]["output"]
        for slot, out in enumerate(node["outputs"]):
            kind = outputs[slot]
            assert out["type"] == ("COMBO" if isinstance(kind, list) else kind), node["title"]
        known = inputs_of(object_info[node["type"]])
        for given in node["inputs"]:
            if given["type"] != "IMAGEUPLOAD":
                kind = known[given["name"]][0]
                assert given["type"] == ("COMBO" if isinstance(kind, list) else kind)


def photo(width, height, seed=0):
    """Smooth and colourful, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def prepared(comfy, name, pictures, **settings):
    """The twin with these pictures, and settings for the node that it is about."""
    twin = wf.load_twin(name)
    loaders = [node for node in twin.values() if node["class_type"] == "LoadImage"]
    for index, (node, picture) in enumerate(zip(loaders, pictures, strict=True)):
        node["inputs"]["image"] = comfy.upload(picture, f"{name}_{index}.png")
    kinds = ("DCTNetCartoon", "GPENRestore", "KSampler")
    [main] = [node for node in twin.values() if node["class_type"] in kinds]
    main["inputs"].update(settings)
    return twin


def run(comfy, name, pictures, **settings):
    """The saved pictures as arrays."""
    result = comfy.run(prepared(comfy, name, pictures, **settings))
    assert all(file.type == "output" for file in result.files)
    return [np.asarray(picture) for picture in comfy.pictures(result)]


def test_cartoon_1024_draws(comfy):
    original = photo(150, 101)
    [drawn] = run(comfy, "cartoon_1024", [original])
    assert drawn.shape == (101, 150, 3)
    assert not np.array_equal(drawn, np.asarray(original))
    assert drawn.std() > 5


def test_cartoon_1024_scales_large_photos_down(comfy):
    [drawn] = run(comfy, "cartoon_1024", [photo(1536, 1024)], style_strength=0.0)
    assert drawn.shape == (683, 1024, 3)


def test_cartoon_1024_puts_transparency_on_white(comfy):
    picture = photo(64, 48).convert("RGBA")
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, :20] = 0
    picture.putalpha(Image.fromarray(alpha))
    [drawn] = run(comfy, "cartoon_1024", [picture], style_strength=0.0)
    assert drawn.shape == (48, 64, 3)
    assert (drawn[:, :20] == 255).all()
    assert np.array_equal(drawn[:, 20:], np.asarray(picture)[:, 20:, :3])


def test_cartoon_batch_draws_every_photo_as_on_its_own(comfy):
    photos = [photo(96, 64, seed) for seed in range(3)]
    together = run(comfy, "cartoon_batch", photos)
    assert len(together) == 3
    for picture, drawn in zip(photos, together, strict=True):
        [alone] = run(comfy, "cartoon_1024", [picture])
        assert np.array_equal(drawn, alone)


def test_cartoon_batch_leaves_photos_of_one_shape_whole(comfy):
    photos = [photo(96, 64, seed) for seed in range(3)]
    saved = run(comfy, "cartoon_batch", photos, style_strength=0.0)
    for picture, kept in zip(photos, saved, strict=True):
        assert np.array_equal(kept, np.asarray(picture))


def test_cartoon_batch_fits_other_shapes_whole_with_white_bars(comfy):
    photos = [photo(96, 64), photo(30, 60, 1), photo(200, 50, 2)]
    saved = run(comfy, "cartoon_batch", photos, style_strength=0.0)
    assert [picture.shape for picture in saved] == [(64, 96, 3)] * 3
    _, tall, wide = saved
    # 30×60 becomes 32×64, 200×50 becomes 96×24; both stand in the middle.
    assert (tall[:, :32] == 255).all()
    assert (tall[:, 64:] == 255).all()
    assert (wide[:20] == 255).all()
    assert (wide[44:] == 255).all()
    inside = np.asarray(photos[1].resize((32, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(tall[:, 32:64].astype(int) - inside).max() <= 2


@pytest.fixture(scope="module")
def gpen(comfy):
    """A small generator of random weights under the name that the workflows have."""
    return put_gpen(comfy, "GPEN-BFR-512.pth")


def test_restore_portrait_restores_the_face_alone(comfy, gpen):
    from skimage import data

    if not detector(comfy):
        pytest.skip("no face detector: run `python run.py weights faces`")
    [restored] = run(comfy, "restore_portrait", [Image.fromarray(data.astronaut())])
    changed = (restored != data.astronaut()).any(axis=2)
    assert changed[80:140, 190:260].mean() > 0.9
    assert not changed[260:].any()


def test_restore_portrait_keeps_a_photos_size(comfy, gpen):
    original = photo(1300, 70)
    [kept] = run(comfy, "restore_portrait", [original], strength=0.0)
    assert np.array_equal(kept, np.asarray(original))
    [restored] = run(comfy, "restore_portrait", [original], mode="tiled", tile_px=512)
    assert restored.shape == (70, 1300, 3)
    assert not np.array_equal(restored, np.asarray(original))


def test_cartoon_with_restoring_switched_on_draws_the_restored_photo(comfy, gpen):
    original = photo(150, 101)
    [plain] = run(comfy, "cartoon_1024", [original])
    workflow = wf.load("cartoon_1024")
    [restorer] = [node for node in workflow["nodes"] if node["type"] == "GPENRestore"]
    restorer["mode"] = 0
    on = wf.ui_to_api(workflow)
    on["1"]["inputs"]["image"] = comfy.upload(original, "on.png")
    on[str(restorer["id"])]["inputs"].update(mode="tiled", precision="fp32")
    [restored] = map(np.asarray, comfy.pictures(comfy.run(on)))
    assert restored.shape == plain.shape
    assert not np.array_equal(restored, plain)


def test_realistic_without_weights_is_refused_with_where_to_get_them(comfy):
    """Run is pressed before anything was downloaded; other tests' models may lie there."""
    info = comfy.do(lambda client: client.object_info("QwenEditLoader"))
    others = workflow.options(info, "base")
    expected = f"one of {re.escape(others[0])}" if others else "Qwen-Image-Edit in models/diffusion"
    with pytest.raises(UserError, match=rf"Model\).*expected {expected}"):
        comfy.run(prepared(comfy, "realistic_1024", [photo(64, 64)]))


@pytest.fixture(scope="module")
def qwen(comfy):
    """Small random weights under the names that the realistic workflows have."""
    put_qwen(comfy)


def realistic(comfy, name, art, **settings):
    """The one picture that is saved, and its caption."""
    result = comfy.run(prepared(comfy, name, [art], **settings))
    [file] = result.files
    data = comfy.do(lambda client: client.download(file))
    [picture] = comfy.pictures(result)
    return np.asarray(picture), pictures.texts_of(data)


def test_realistic_1024_keeps_the_frame_and_says_how(comfy, qwen):
    drawn, texts = realistic(comfy, "realistic_1024", photo(150, 101), seed=1)
    assert drawn.shape == (101, 150, 3)
    assert drawn.std() > 5
    told = texts["Description"]
    assert told.startswith("Resolution: 150×101 | CFG: 4.0 | Steps: 40 | Weight: none")
    assert "EditPreset" in texts["prompt"]


def test_realistic_1024_lightning_takes_four_steps_with_its_lora(comfy, qwen):
    art = photo(96, 64)
    one, texts = realistic(comfy, "realistic_1024_lightning", art, seed=1)
    other, _ = realistic(comfy, "realistic_1024_lightning", art, seed=2)
    assert (
        "| CFG: 1.0 | Steps: 4 | Weight: Qwen-Image-Edit-2511-Lightning-4steps"
        in (texts["Description"])
    )
    assert one.shape == other.shape == (64, 96, 3)
    assert not np.array_equal(one, other)


VERSIONS = {"A": ("none", 1), "B": ("compare_9.safetensors", 4), "C": ("compare_20.safetensors", 4)}


@pytest.fixture(scope="module")
def versions(comfy, qwen):
    """Two small LoRAs of random numbers."""
    for seed, (name, _) in enumerate(VERSIONS.values()):
        if name != "none":
            qwen_tiny.write_lora(comfy.server.base / "models" / "loras" / name, seed)


def titled(graph, title):
    [node] = [node for node in graph.values() if node["_meta"]["title"] == title]
    return node["inputs"]


def compared(comfy, art, seed, versions=VERSIONS):
    """The graph that compares these versions."""
    twin = wf.load_twin("compare_loras")
    titled(twin, "Art")["image"] = comfy.upload(art, "compared.png")
    titled(twin, "Seed")["value"] = seed
    for letter, (name, strength) in versions.items():
        titled(twin, f"LoRA {letter}").update(lora=name, strength=strength)
    return twin


def ran(comfy, result, graph):
    """Titles of the nodes that a job ran and did not have from before."""
    entry = comfy.do(lambda client: client._history(result.prompt_id))
    [kept] = [data["nodes"] for kind, data in entry["status"]["messages"]
              if kind == "execution_cached"]  # fmt: skip
    return {node["_meta"]["title"] for key, node in graph.items() if key not in kept}


def test_compare_loras_lays_what_single_runs_give_side_by_side(comfy, versions):
    art = photo(75, 50)
    graph = compared(comfy, art, seed=5)
    result = comfy.run(graph)
    [sheet] = map(np.asarray, comfy.pictures(result))
    parts = [sheet[:50, left : left + 75] for left in (0, 79, 158)]
    assert sheet.shape[1] == 3 * 75 + 2 * 4 and sheet.shape[0] > 50
    assert (sheet[:, 75:79] == 255).all() and (sheet[:, 154:158] == 255).all()
    for index, (name, strength) in enumerate(VERSIONS.values()):
        alone = prepared(comfy, "realistic_1024", [art], seed=5)
        titled(alone, "LoRA").update(lora=name, strength=strength)
        titled(alone, "Preset")["preset"] = "official, 20 steps"
        [single] = map(np.asarray, comfy.pictures(comfy.run(alone)))
        assert np.array_equal(parts[index], single), name
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(parts[one].astype(int) - parts[other]).mean() > 0.1
    lines = caption_of(result, graph)
    assert [line.split(" | ")[3] for line in lines] == [
        "Weight: none", "Weight: compare_9 (4)", "Weight: compare_20 (4)"
    ]  # fmt: skip
    assert all(line.startswith("Resolution: 75×50 | CFG: 4.0 | Steps: 20") for line in lines)


def caption_of(result, graph):
    [save] = [key for key, node in graph.items() if node["class_type"] == "ResultCaption"]
    return result.outputs[save]["text"][0].splitlines()


def test_compare_loras_draws_only_the_version_that_was_changed(comfy, versions):
    art = photo(64, 48, 1)
    comfy.run(compared(comfy, art, seed=6))
    graph = compared(comfy, art, seed=6, versions={**VERSIONS, "C": ("compare_9.safetensors", 2)})
    again = ran(comfy, comfy.run(graph), graph)
    assert again == {"LoRA C", "Sample C", "Decode C", "Frame C", "Save"}


def test_compare_loras_with_the_third_switched_off_shows_two(comfy, versions):
    """Ctrl+M on Frame C, as the note says."""
    workflow = wf.load("compare_loras")
    [frame] = [node for node in workflow["nodes"] if node["title"] == "Frame C"]
    frame["mode"] = wf.MUTED
    graph = wf.ui_to_api(workflow)
    titled(graph, "Art")["image"] = comfy.upload(photo(64, 48, 1), "two.png")
    result = comfy.run(graph)
    [sheet] = comfy.pictures(result)
    assert sheet.width == 2 * 64 + 4
    titles = {graph[key]["_meta"]["title"] for key in result.outputs}
    assert {"Decode A", "Decode B"} <= titles and "Decode C" not in titles
    assert caption_of(result, graph)[2:] == ["no image_3 is joined: its weight is left out"]


def test_template_list_offers_them(comfy):
    found = comfy.do(lambda client: client._json("GET", "/workflow_templates"))
    [ours] = [names for pack, names in found.items() if "realtoon" in pack]
    assert sorted(ours) == wf.NAMES


def test_template_and_thumbnail_are_served(comfy, name):
    folder = "/api/workflow_templates/comfyui-realtoon"
    status, body = comfy.do(lambda client: client._call("GET", f"{folder}/{name}.json"))
    assert (status, body) == (200, (wf.FOLDER / f"{name}.json").read_bytes())
    status, body = comfy.do(lambda client: client._call("GET", f"{folder}/{name}.jpg"))
    assert (status, body) == (200, (wf.FOLDER / f"{name}.jpg").read_bytes())
