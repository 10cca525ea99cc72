"""The shipped workflows as files: whole, tidy, and the same graph as their twins."""

import copy
import json

import pytest
import workflow_files as wf
from PIL import Image
from realtoon.host import paths
from realtoon.weights_loader import catalog

# The thumbnail is shown as a small square.
THUMBNAIL_BYTES = 120_000
REALISTIC = ("realistic_1024", "realistic_1024_lightning")
COMPARE = "compare_loras"
DEFAULTS = {
    "DCTNetCartoon": ["cel (built-in)", 0.75, 1, True, 10, 40, 0],
    "GPENRestore": ["GPEN-BFR-512.pth", 1, 1, 0, "largest", 20, "faces", 512, 64, "auto"],
    "PrepareImage": [1024, 1, "white", "pad", 0, 0, 0],
    "EncodeForEdit": ["", " ", "noise", "auto", 384],
    "RestoreFraming": ["prepared"],
    "TiledVAEDecode": ["fp32", 0],
}
# Names that the browser's own list of a node's inputs does not give a wire type.
ANY = "*"


@pytest.fixture(params=wf.NAMES)
def name(request):
    return request.param


@pytest.fixture
def workflow(name):
    return wf.load(name)


def restorers(workflow):
    return [node for node in workflow["nodes"] if node["type"] == "GPENRestore"]


def test_the_workflows_are_shipped():
    assert {"cartoon_1024", "cartoon_batch", "restore_portrait", COMPARE, *REALISTIC} <= set(
        wf.NAMES
    )


def test_each_has_a_twin_and_a_thumbnail_and_nothing_is_left_over(name):
    assert sorted(path.stem for path in (wf.FOLDER / "api").iterdir()) == wf.NAMES
    with Image.open(wf.FOLDER / f"{name}.jpg") as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert picture.width == picture.height >= 384
    assert (wf.FOLDER / f"{name}.jpg").stat().st_size <= THUMBNAIL_BYTES


def test_thumbnails_have_a_workflow():
    assert {path.stem for path in wf.FOLDER.glob("*.jpg")} <= set(wf.NAMES)


def test_twin_is_the_same_graph(name, workflow):
    assert wf.ui_to_api(workflow) == wf.load_twin(name)


def test_twin_that_differs_is_seen(name, workflow):
    changed = copy.deepcopy(workflow)
    used = [node for node in changed["nodes"] if node["mode"] == 0]
    kinds = ("DCTNetCartoon", "GPENRestore", "EditPreset")
    node = next(node for node in used if node["type"] in kinds)
    node["widgets_values"][1] = 0.5
    assert wf.ui_to_api(changed) != wf.load_twin(name)


def test_is_the_format_that_every_front_end_reads(workflow):
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] >= max(node["id"] for node in workflow["nodes"])
    assert workflow["last_link_id"] >= max(link[0] for link in workflow["links"])


def test_ids_are_unique(workflow):
    for ids in (
        [node["id"] for node in workflow["nodes"]],
        [link[0] for link in workflow["links"]],
        [group["id"] for group in workflow["groups"]],
        [node["order"] for node in workflow["nodes"]],
    ):
        assert len(ids) == len(set(ids))


def test_links_are_known_at_both_ends(workflow):
    nodes = wf.by_id(workflow)
    for link_id, origin, slot, target, place, kind in workflow["links"]:
        out, given = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert link_id in out["links"]
        assert given["link"] == link_id
        assert kind == out["type"]
        assert given["type"] in (kind, ANY)


def test_no_node_knows_of_other_links(workflow):
    known = {link[0]: link for link in workflow["links"]}
    for node in workflow["nodes"]:
        for place, given in enumerate(node["inputs"]):
            if given["link"] is not None:
                assert known[given["link"]][3:5] == [node["id"], place]
        for slot, out in enumerate(node["outputs"]):
            for link_id in out["links"] or []:
                assert known[link_id][1:3] == [node["id"], slot]


def test_every_widget_has_its_value(workflow):
    for node in workflow["nodes"]:
        if node["type"] in wf.NOTES:
            assert len(node["widgets_values"]) == 1
        else:
            assert len(node["widgets_values"]) == len(wf.widgets_in_file(node)), node["title"]


def test_every_node_is_used(workflow):
    """A node that leads nowhere is a leftover, unless it is what shows or saves the result."""
    for node in workflow["nodes"]:
        joined = [given for given in node["inputs"] if given["link"] is not None]
        leads = [out for out in node["outputs"] if out["links"]]
        if node["type"] not in wf.NOTES:
            assert joined or leads, node["title"]


def test_nodes_run_from_left_to_right(workflow):
    nodes = wf.by_id(workflow)
    for _, origin, _, target, *_ in workflow["links"]:
        assert nodes[origin]["pos"][0] <= nodes[target]["pos"][0]
        assert nodes[origin]["order"] < nodes[target]["order"]


def test_nothing_overlaps(workflow):
    boxes = [(node["title"], wf.node_box(node)) for node in workflow["nodes"]]
    groups = [(group["title"], wf.group_box(group)) for group in workflow["groups"]]
    for these in (boxes, groups):
        for index, (title, box) in enumerate(these):
            for other_title, other in these[index + 1 :]:
                assert not box.overlaps(other), f"{title} overlaps {other_title}"


def test_every_node_lies_in_one_group(workflow):
    groups = [wf.group_box(group) for group in workflow["groups"]]
    for node in workflow["nodes"]:
        inside = [group for group in groups if group.encloses(wf.node_box(node))]
        assert len(inside) == 1, node["title"]


def test_every_node_has_a_title_of_its_own(workflow):
    titles = [node["title"] for node in workflow["nodes"]]
    assert len(titles) == len(set(titles))


def test_notes_say_where_to_begin_and_how_faces_get_their_weights(workflow):
    notes = {
        node["title"]: node["widgets_values"][0]
        for node in workflow["nodes"]
        if node["type"] in wf.NOTES
    }
    assert "**Run**" in notes["Start here"]
    if {"DCTNetCartoon", "GPENRestore"} & {node["type"] for node in workflow["nodes"]}:
        assert "python run.py weights faces" in notes["Faces"]


def test_pictures_are_those_that_every_comfyui_brings(workflow):
    """So that Run works before anything is chosen."""
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            assert node["widgets_values"][0] == "example.png"


def test_defaults_are_the_nodes_own(name, workflow):
    wanted = dict(DEFAULTS)
    if name == "restore_portrait":
        # Nothing is gained by making a photo smaller before its faces are restored.
        wanted["PrepareImage"] = [0, *DEFAULTS["PrepareImage"][1:]]
    if name in (*REALISTIC, COMPARE):
        # What the model sees of a picture is a grid of 16 pixels.
        wanted["PrepareImage"] = [1024, 16, *DEFAULTS["PrepareImage"][2:]]
    for node in workflow["nodes"]:
        if node["type"] in wanted:
            assert node["widgets_values"] == wanted[node["type"]]


@pytest.fixture(params=REALISTIC)
def realistic(request):
    """A realistic workflow's nodes by their class, in the order in which they run."""
    found = {}
    for node in wf.load_twin(request.param).values():
        found.setdefault(node["class_type"], []).append(node["inputs"])
    return found


def origin(name, link):
    return wf.load_twin(name)[link[0]]["class_type"]


@pytest.mark.parametrize("name", REALISTIC)
def test_the_realistic_graph_is_joined_as_the_model_wants_it(name):
    twin = wf.load_twin(name)
    nodes = {node["class_type"]: node["inputs"] for node in twin.values()}
    encode, sampler = nodes["EncodeForEdit"], nodes["KSampler"]
    assert origin(name, encode["image"]) == "PrepareImage"
    assert origin(name, encode["clip"]) == origin(name, encode["vae"]) == "VRAMGuard"
    # Nothing that the preset knows is typed into another node.
    given = ("model", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    outputs = [out["name"] for out in by_class(name, "EditPreset")["outputs"]]
    for kind, inputs in (("KSampler", given), ("EncodeForEdit", ("prompt", "negative"))):
        for each in inputs:
            node, slot = nodes[kind][each]
            assert (twin[node]["class_type"], outputs[slot]) == ("EditPreset", each)
    for each in ("positive", "negative", "latent_image"):
        assert origin(name, sampler[each]) == "EncodeForEdit"
    assert origin(name, nodes["TiledVAEDecode"]["samples"]) == "KSampler"
    assert origin(name, nodes["TiledVAEDecode"]["vae"]) == "VRAMGuard"
    for each in ("clip", "vae"):
        assert origin(name, nodes["VRAMGuard"][each]) == "QwenEditLoader"
    assert origin(name, nodes["VRAMGuard"]["model"]) == "LoRAHotInject"
    assert origin(name, nodes["EditPreset"]["model"]) == "VRAMGuard"
    assert origin(name, nodes["RestoreFraming"]["image"]) == "TiledVAEDecode"
    assert origin(name, nodes["RestoreFraming"]["framing"]) == "PrepareImage"
    # GPENRestore stands between the two and is off.
    assert origin(name, nodes["ResultCaption"]["image"]) == "RestoreFraming"
    assert by_class(name, "GPENRestore")["mode"] == wf.BYPASSED


def by_class(name, kind):
    [node] = [node for node in wf.load(name)["nodes"] if node["type"] == kind]
    return node


def test_the_usual_realistic_graph_has_the_official_settings(realistic):
    [preset] = realistic["EditPreset"]
    loras = [inputs["lora"] for inputs in realistic["LoRAHotInject"]]
    assert preset["preset"] == ("official, 40 steps" if len(loras) == 1 else "Lightning, 4 steps")
    # The last is for a LoRA of one's own, and empty.
    assert loras[-1] == "none"
    assert loras[:-1] in ([], [catalog.find("lightning-4").files[0].save_as])
    assert (preset["scene"], preset["skin"], preset["prompt"]) == ("usual", False, "")


@pytest.mark.parametrize("name", (*REALISTIC, COMPARE))
def test_the_realistic_models_are_those_of_the_catalogue(name):
    """The front end offers these links where the files are missing."""
    loaders = [node for node in wf.load(name)["nodes"] if "models" in node["properties"]]
    offered = [model for node in loaders for model in node["properties"]["models"]]
    ids = catalog.SETS["lightning" if name.endswith("lightning") else "realistic"]
    entries = [catalog.find(each) for each in ids]
    assert offered == [
        {"name": file.save_as, "url": file.urls[0], "directory": entry.folder}
        for entry in entries
        for file in entry.files
    ]
    chosen = [value for node in loaders for value in node["widgets_values"]]
    assert {model["name"] for model in offered} <= set(chosen)
    notes = " ".join(node["widgets_values"][0] for node in wf.load(name)["nodes"]
                     if node["type"] in wf.NOTES)  # fmt: skip
    size = sum(entry.size_bytes for entry in entries) / 1e9
    assert f"{size:.0f} GB" in notes
    assert f"weights download {'lightning' if len(ids) == 4 else 'realistic'}`" in notes


def test_restoring_stands_before_the_cartoon_and_is_off():
    workflow = wf.load("cartoon_1024")
    nodes, twin = wf.by_id(workflow), wf.load_twin("cartoon_1024")
    [restorer] = restorers(workflow)
    assert restorer["mode"] == wf.BYPASSED
    targets = [nodes[link[3]]["type"] for link in workflow["links"] if link[1] == restorer["id"]]
    assert targets == ["DCTNetCartoon"]
    # So that it runs where there are no weights.
    assert "GPENRestore" not in {node["class_type"] for node in twin.values()}
    [given] = [link for link in workflow["links"] if link[3] == restorer["id"]]
    [cartoon] = [node for node in twin.values() if node["class_type"] == "DCTNetCartoon"]
    assert cartoon["inputs"]["image"] == [str(given[1]), given[2]]


def test_restoring_can_be_switched_on():
    workflow, twin = wf.load("cartoon_1024"), wf.load_twin("cartoon_1024")
    [restorer] = restorers(workflow)
    restorer["mode"] = 0
    prompt = wf.ui_to_api(workflow)
    restored = prompt.pop(str(restorer["id"]))
    [key] = [key for key, node in twin.items() if node["class_type"] == "DCTNetCartoon"]
    assert prompt[key]["inputs"].pop("image") == [str(restorer["id"]), 0]
    assert restored["inputs"]["image"] == twin[key]["inputs"].pop("image")
    assert prompt == twin


def test_note_says_how_to_switch_it_on():
    nodes = wf.load("cartoon_1024")["nodes"]
    [text] = [node["widgets_values"][0] for node in nodes if node["title"] == "Restore or not"]
    assert "**Ctrl+B**" in text
    assert "python run.py weights download gpen-512" in text
    assert "non-commercial" in text


def test_all_of_it_can_be_read_on_a_usual_screen(workflow):
    """The front end shows a new graph whole, and below 57 % it leaves texts out.

    It takes three quarters of the window: 1920×937 in a browser on a full HD screen.
    """
    boxes = [wf.group_box(group) for group in workflow["groups"]]
    width = max(box.x + box.width for box in boxes) - min(box.x for box in boxes)
    height = max(box.y + box.height for box in boxes) - min(box.y for box in boxes)
    assert width <= 0.75 * 1920 / 0.575
    assert height <= 0.75 * 937 / 0.575


def test_weights_are_those_of_the_catalogue(workflow):
    """The front end offers these links where the files are missing."""
    for node in restorers(workflow):
        found = [catalog.find(name) for name in ("gpen-512", "parsenet")]
        links = [
            {"name": file.save_as, "url": file.urls[0], "directory": entry.folder}
            for entry in found
            for file in entry.files
        ]
        # Older front ends ask for the files of nodes that are switched off as well.
        on = node["mode"] != wf.BYPASSED
        assert node["properties"].get("models", []) == (links if on else [])
        assert node["widgets_values"][0] == links[0]["name"]


def test_our_nodes_name_the_pack_that_has_them(workflow):
    """ComfyUI's manager offers this pack to those who lack it."""
    for node in workflow["nodes"]:
        if node["type"] in paths.NODE_IDS:
            assert node["properties"]["cnr_id"] == "comfyui-realtoon"


def test_transparency_is_joined(workflow):
    """LoadImage takes transparency out of the picture and gives it as a mask."""
    nodes = wf.by_id(workflow)
    for node in workflow["nodes"]:
        if node["type"] == "PrepareImage":
            joined = {given["name"]: given["link"] for given in node["inputs"]}
            origins = [link for link in workflow["links"] if link[0] == joined["mask"]]
            assert [nodes[link[1]]["type"] for link in origins] == ["LoadImage"]


def test_no_machine_is_named_in_them(name):
    text = (wf.FOLDER / f"{name}.json").read_text("utf-8")
    assert "/root/" not in text
    assert "/home/" not in text
    assert ":\\\\" not in text


class TestConversion:
    """ui_to_api on what the shipped files do not have."""

    @staticmethod
    def graph(*middle, links):
        load = _node(1, "LoadImage", [], [("IMAGE", "IMAGE")], ["a.png"], widgets=["image"])
        save = _node(9, "SaveImage", [("images", "IMAGE")], [], ["x"], widgets=["filename_prefix"])
        nodes = [load, *middle, save]
        for link_id, origin, slot, target, place, _ in links:
            by = {node["id"]: node for node in nodes}
            by[origin]["outputs"][slot]["links"] = [link_id]
            by[target]["inputs"][place]["link"] = link_id
        return {"nodes": nodes, "links": links, "groups": [], "version": 0.4}

    def test_reroute_is_followed(self):
        reroute = _node(2, "Reroute", [("", "*")], [("", "IMAGE")], None)
        links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 9, 0, "IMAGE"]]
        prompt = wf.ui_to_api(self.graph(reroute, links=links))
        assert prompt["9"]["inputs"] == {"filename_prefix": "x", "images": ["1", 0]}
        assert set(prompt) == {"1", "9"}

    @pytest.mark.parametrize(("mode", "source"), [(wf.MUTED, None), (wf.BYPASSED, ["1", 0])])
    def test_muted_ends_and_bypassed_passes_on(self, mode, source):
        invert = _node(2, "ImageInvert", [("image", "IMAGE")], [("IMAGE", "IMAGE")], [])
        invert["mode"] = mode
        links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 9, 0, "IMAGE"]]
        prompt = wf.ui_to_api(self.graph(invert, links=links))
        assert prompt["9"]["inputs"].get("images") == source
        assert "2" not in prompt

    def test_bypassed_passes_on_what_has_the_outputs_type(self):
        inputs = [("image", "IMAGE"), ("any", "*"), ("model", "COMBO"), ("mask", "MASK")]
        outputs = [("image", "IMAGE"), ("faces", "IMAGE"), ("face_mask", "MASK"), ("text", "INT")]
        middle = _node(2, "GPENRestore", inputs, outputs, [])
        middle["mode"] = wf.BYPASSED
        for place, given in enumerate(middle["inputs"]):
            given["link"] = 10 + place
        # The second output's own place takes anything, and for a number nothing else does.
        assert [wf._bypass(middle, slot) for slot in range(4)] == [10, 11, 13, 11]
        middle["inputs"].pop(1)
        assert [wf._bypass(middle, slot) for slot in range(4)] == [10, 10, 13, None]

    def test_primitive_is_its_value(self):
        primitive = _node(2, "PrimitiveNode", [], [("STRING", "STRING")], ["named"])
        graph = self.graph(primitive, links=[[1, 2, 0, 9, 1, "STRING"]])
        assert wf.ui_to_api(graph)["9"]["inputs"]["filename_prefix"] == "named"

    def test_value_that_only_the_browser_has_is_left_out(self):
        info = {
            "input": {
                "required": {"model": ["MODEL"], "seed": ["INT", {}], "steps": ["INT", {}]},
                "optional": {"name": [["a", "b"], {"image_upload": True}], "mask": ["MASK"]},
            }
        }
        assert wf.widgets_of_class(info) == ["seed", None, "steps", "name", None]
        node = _node(1, "KSampler", [], [], [7, "randomize", 20], widgets=["seed", "steps"])
        assert wf.widgets_in_file(node) == ["seed", None, "steps"]

    def test_subgraphs_are_refused_rather_than_lost(self):
        graph = self.graph(links=[])
        graph["definitions"] = {"subgraphs": [{"id": "x"}]}
        with pytest.raises(ValueError, match="subgraphs"):
            wf.ui_to_api(graph)


def _node(node_id, kind, inputs, outputs, values, widgets=()):
    return {
        "id": node_id,
        "type": kind,
        "order": node_id,
        "mode": 0,
        "inputs": [
            *({"name": name, "type": type_, "link": None} for name, type_ in inputs),
            *(
                {"name": name, "type": "COMBO", "widget": {"name": name}, "link": None}
                for name in widgets
            ),
        ],
        "outputs": [{"name": name, "type": type_, "links": None} for name, type_ in outputs],
        "widgets_values": values,
    }


def test_files_are_text_that_diffs_well(name):
    for path in (wf.FOLDER / f"{name}.json", wf.FOLDER / "api" / f"{name}.json"):
        text = path.read_text("utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
