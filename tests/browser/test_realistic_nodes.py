"""EditPreset's lists and ResultCaption's files, as the front end takes them."""

import json

import pytest
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


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_saved_picture_brings_its_workflow_back(comfy, page, tmp_path, kind: str) -> None:
    page.load()
    node_id = page.js(WORKFLOW, f"写实 {kind}", kind)
    before = page.saved()
    page.press_run()
    page.until("the caption is shown", lambda: page.report(node_id), limit_s=60)
    text = f"Resolution: 176×132 | CFG: 4.0 | Steps: 40 | Weight: 写实 {kind}"
    assert page.report(node_id).splitlines()[0] == text
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
