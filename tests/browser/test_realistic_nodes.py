"""EditPreset's lists and ResultCaption's files, as the front end takes them."""

import json

import pytest
import workflow_files as wf
from PIL import Image

JOIN = """
app.graph.clear();
const made = (kind) => {
  const node = LiteGraph.createNode(kind); app.graph.add(node); return node;
};
const preset = made("EditPreset");
const joins = (output, target, input) => {
  const from = preset.outputs.findIndex((each) => each.name === output);
  const to = target.inputs.findIndex((each) => each.name === input);
  return from >= 0 && to >= 0 && !!preset.connect(from, target, to);
};
const sampler = made("KSampler");
const found = {};
const names = ["model", "steps", "cfg", "sampler_name", "scheduler", "denoise"];
for (const name of names) found[name] = joins(name, sampler, name);
found.select = joins("sampler_name", made("KSamplerSelect"), "sampler_name");
found.basic = joins("scheduler", made("BasicScheduler"), "scheduler");
found.caption = joins("settings", made("ResultCaption"), "sampler");
found["a list into a number"] = joins("sampler_name", sampler, "steps");
return found;
"""


def test_the_choices_join_the_samplers_lists(page) -> None:
    page.load()
    found = page.js(JOIN)
    assert found.pop("a list into a number") is False
    assert found and all(found.values()), found
    sent = page.prompt()
    [preset] = [key for key, node in sent.items() if node["class_type"] == "EditPreset"]
    [sampler] = [node for node in sent.values() if node["class_type"] == "KSampler"]
    inputs = [sampler["inputs"][name] for name in ("sampler_name", "scheduler", "denoise")]
    assert inputs == [[preset, 3], [preset, 4], [preset, 5]]


WORKFLOW = """
app.graph.clear();
const load = LiteGraph.createNode("LoadImage"), save = LiteGraph.createNode("ResultCaption");
for (const node of [load, save]) app.graph.add(node);
load.pos = [60, 100]; save.pos = [460, 100];
load.widgets.find((each) => each.name === "image").value = "example.png";
const set = (name, value) => { save.widgets.find((each) => each.name === name).value = value; };
set("cfg", 4.0); set("steps", 40); set("weight", arguments[0]); set("draw", "below");
set("format", arguments[1]);
load.connect(0, save, save.inputs.findIndex((each) => each.name === "image"));
return String(save.id);
"""


BOX = """
const node = app.graph.getNodeById(Number(arguments[0]));
if (!node.imgs?.length) return false;
const title = LiteGraph.NODE_TITLE_HEIGHT;
return Math.abs(node.boundingRect[3] - title - node.size[1]) < 1;
"""


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_saved_picture_brings_its_workflow_back(comfy, page, tmp_path, kind: str) -> None:
    page.load()
    node_id = page.js(WORKFLOW, f"写实 {kind}", kind)
    before = page.saved()
    page.press_run()
    page.until("the caption is shown", lambda: page.report(node_id), limit_s=60)
    text = f"Resolution: 176×132 | CFG: 4.0 | Steps: 40 | Weight: 写实 {kind}"
    assert page.report(node_id).splitlines()[0] == text
    # It has grown by the picture while it was drawn; the box has to follow.
    page.until("the picture lies in its box", lambda: page.js(BOX, node_id), limit_s=20)
    page.shot(f"result-caption-{kind}-{comfy.version}-{comfy.front_end}")
    assert page.complaints() == []
    newest = max((comfy.server.base / "output").glob(f"RealToon_*.{kind}"))
    with Image.open(newest) as picture:
        assert picture.width == 176 and picture.height > 132
    page.drop(newest)
    after = page.saved()
    assert page.complaints() == []
    for one, other in zip(before["nodes"], after["nodes"], strict=True):
        assert one["type"] == other["type"]
        assert one["widgets_values"] == other["widgets_values"]
    assert json.dumps(before["links"]) == json.dumps(after["links"])


def test_weights_of_other_versions_are_sockets_alone(page) -> None:
    page.load()
    page.drop(wf.FOLDER / "compare_loras.json")
    [save] = [node for node in page.saved()["nodes"] if node["type"] == "ResultCaption"]
    given = {each["name"]: each for each in save["inputs"]}
    for name in ("image_2", "weight_2", "image_3", "weight_3"):
        assert "widget" not in given[name] and given[name]["link"] is not None
    # As before there were any: values are told apart by their places.
    assert save["widgets_values"] == [4, 20, "", "", "below", "RealToon/compare", "png", ""]


def test_a_version_is_left_out_by_ctrl_m(comfy, page) -> None:
    """As the note in the workflow says; what is joined to an optional input may be off."""
    page.load()
    page.drop(wf.FOLDER / "compare_loras.json")
    workflow = wf.load("compare_loras")
    [frame] = [node for node in workflow["nodes"] if node["title"] == "Frame C"]
    page.click_title(str(frame["id"]))
    page.press_ctrl("m")
    frame["mode"] = wf.MUTED
    assert page.prompt() == wf.ui_to_api(workflow)
    page.press_run()
    [save] = [node["id"] for node in workflow["nodes"] if node["type"] == "ResultCaption"]
    page.until("the caption is shown", lambda: page.report(str(save)), limit_s=120)
    *captions, note = page.report(str(save)).splitlines()
    assert len(captions) == 2 and note.startswith("no image_3 is joined")
    assert page.complaints() == []
    page.shot(f"compare-two-{comfy.version}-{comfy.front_end}")


def test_a_file_from_before_the_other_versions_is_joined_as_it_was(page, tmp_path) -> None:
    page.load()
    workflow = wf.load("realistic_1024")
    [save] = [node for node in workflow["nodes"] if node["type"] == "ResultCaption"]
    save["inputs"] = [each for each in save["inputs"] if each["name"][-2:] not in ("_2", "_3")]
    for place, given in enumerate(save["inputs"]):
        for link in workflow["links"]:
            if link[0] == given["link"]:
                link[4] = place
    file = tmp_path / "old.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    assert page.prompt() == wf.load_twin("realistic_1024")
