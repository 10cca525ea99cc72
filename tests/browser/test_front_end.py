"""The shipped workflows, the help pages and the reports, as people see them in the browser."""

import json
import re

import numpy as np
import pytest
import workflow_files as wf
from realtoon.host import face_weights, paths, server

HELP = wf.FOLDER.parent / "web" / "docs"
NODES = paths.NODE_IDS


@pytest.fixture(params=wf.NAMES)
def name(request):
    return request.param


@pytest.fixture
def dropped(page, name):
    """The page after the workflow's file was dropped onto it."""
    page.drop(wf.FOLDER / f"{name}.json")
    return page


@pytest.fixture
def runnable(comfy, name):
    """Skips what this host cannot run."""
    kinds = {node["class_type"] for node in wf.load_twin(name).values()}
    places = server.model_places(comfy.server.host, paths.cache_folder())
    if "GPENRestore" in kinds and face_weights.present(places) is None:
        pytest.skip("no face detector: run `python run.py weights faces`")


def label(comfy, name):
    return f"{name}-{comfy.version}-{comfy.front_end}"


def history(comfy):
    return comfy.do(lambda client: client._json("GET", "/history"))


def job_in_page(comfy, page):
    """Press Run and wait for the end; returns the JobResult."""
    before = set(history(comfy))
    page.press_run()

    def ended():
        new = {key: entry for key, entry in history(comfy).items() if key not in before}
        return next((key for key, entry in new.items() if entry.get("status")), None)

    job = page.until("the job has ended", ended, limit_s=300)
    return comfy.do(lambda client: client.result(job))


def test_drop_puts_the_whole_graph_on_the_canvas(comfy, dropped, name):
    shipped, shown = wf.by_id(wf.load(name)), wf.by_id(dropped.saved())
    assert dropped.complaints() == []
    assert {str(key) for key in shown} == {str(key) for key in shipped}
    for key, node in shown.items():
        file = shipped[int(key)]
        assert (node["type"], node["title"]) == (file["type"], file["title"])
        assert (node.get("widgets_values") or []) == file["widgets_values"], node["title"]
    dropped.shot(label(comfy, name))


def test_front_end_finds_room_for_every_node(dropped, name):
    """Nodes whose content needs more room grow when loaded, over what lies beside them."""
    assert moved(dropped, name) == {}


def test_prompt_is_the_twin(dropped, name):
    assert dropped.prompt() == wf.load_twin(name)


def test_run_gives_the_picture_that_the_api_gives(comfy, dropped, name, runnable):
    comfy.do(lambda client: client.free())
    by_page = job_in_page(comfy, dropped)
    assert dropped.complaints() == []
    # Else the host answers from its memory, with the same file.
    comfy.do(lambda client: client.free())
    by_api = comfy.run(wf.load_twin(name))
    assert len(by_page.files) == len(by_api.files) > 0
    assert not {file.filename for file in by_page.files} & {f.filename for f in by_api.files}
    for one, other in zip(comfy.pictures(by_page), comfy.pictures(by_api), strict=True):
        if name == "compare_loras":
            # Three of them with a gap between, and their captions below.
            assert one.width == 3 * 176 + 2 * 4 and one.height > 132
        else:
            assert one.size == (176, 132)
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_report_is_on_the_nodes_and_nowhere_else(comfy, dropped, name, runnable):
    # From the start: what the host has kept from an earlier run is not in a job's history.
    comfy.do(lambda client: client.free())
    said = job_in_page(comfy, dropped).outputs
    twin = wf.load_twin(name)
    file = wf.by_id(wf.load(name))
    # A collapsed node shows its title alone.
    ours = [
        key
        for key, node in twin.items()
        if node["class_type"] in NODES and not file[int(key)]["flags"].get("collapsed")
    ]
    # Also of those that did not run because another had the same inputs.
    dropped.until("all reports", lambda: all(map(dropped.report, ours)), limit_s=20)
    for key in set(ours) & set(said):
        shown, *later = dropped.report(key).split("\n---\n")
        assert shown == "\n".join(said[key]["text"])
        # What a run took is told when it is over.
        assert bool(later) == (twin[key]["class_type"] == "VRAMGuard")
    dropped.shot(f"{label(comfy, name)}-done")
    # It is an answer: neither saved nor sent. A seed is another one after each run.
    assert unseeded(dropped.prompt()) == unseeded(twin)
    for node in dropped.saved()["nodes"]:
        if node["type"] in NODES:
            assert node["widgets_values"] == file[int(node["id"])]["widgets_values"]
    assert moved(dropped, name) == {}


def moved(page, name):
    """Title -> [place, size] in the file and on the page, of nodes that are not as in the file."""
    file = wf.by_id(wf.load(name))
    pairs = {
        node["title"]: [
            [list(each[what]) for what in ("pos", "size")] for each in (file[int(node["id"])], node)
        ]
        for node in page.saved()["nodes"]
    }
    return {title: pair for title, pair in pairs.items() if pair[0] != pair[1]}


def unseeded(prompt):
    return {
        key: {**node, "inputs": {**node["inputs"], "seed": None}} for key, node in prompt.items()
    }


def test_restoring_is_switched_on_by_ctrl_b(page):
    page.load()
    page.drop(wf.FOLDER / "cartoon_1024.json")
    workflow = wf.load("cartoon_1024")
    [restorer] = [node for node in workflow["nodes"] if node["type"] == "GPENRestore"]
    page.click_title(str(restorer["id"]))
    page.press_ctrl("b")
    restorer["mode"] = 0
    assert page.prompt() == wf.ui_to_api(workflow)
    page.press_ctrl("b")
    assert page.prompt() == wf.load_twin("cartoon_1024")


def test_missing_node_would_be_noticed(page, tmp_path):
    workflow = wf.load("cartoon_1024")
    workflow["nodes"][1]["type"] = "NoSuchNodeAnywhere"
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    assert "NoSuchNodeAnywhere" in " ".join(page.complaints())
    page.load()


def test_every_input_has_a_tooltip(page):
    for node in NODES:
        given = page.js(
            "const d = LiteGraph.registered_node_types[arguments[0]].nodeData.input;"
            "return {...d.required, ...(d.optional ?? {})}",
            node,
        )
        assert given
        for name, (_, options) in given.items():
            assert len(options["tooltip"]) > 20, f"{node}.{name}"


def heading(path):
    return re.match(r"# (.+)", path.read_text("utf-8"))[1]


def kinds(name):
    """Class of a node -> its id, in a shipped workflow."""
    return {node["type"]: node["id"] for node in wf.load(name)["nodes"]}


def opened_help(page, kind):
    """The text of a node's help page, opened by its button."""
    holder = next((name for name in wf.NAMES if kind in kinds(name)), None)
    if holder is None:
        page.js(
            "const node = LiteGraph.createNode(arguments[0]); app.graph.clear();"
            "app.graph.add(node); app.canvas.centerOnNode(node)",
            kind,
        )
        page.click_title(str(page.saved()["nodes"][0]["id"]))
    else:
        page.drop(wf.FOLDER / f"{holder}.json")
        page.click_title(str(kinds(holder)[kind]))
    page.find("[data-testid=info-button]").click()
    page.until("the help page is shown", "return !!document.querySelector('.node-help-content h2')")
    return page.find(".node-help-content").text


@pytest.mark.parametrize("kind", NODES)
def test_help_opens_in_english(comfy, page, kind):
    page.load()
    text = opened_help(page, kind)
    page.shot(f"help-{kind}-en-{comfy.version}-{comfy.front_end}")
    assert heading(HELP / f"{kind}.md") in text
    assert "If something looks wrong" in text


@pytest.fixture(scope="class")
def chinese(page):
    """The front end in Chinese for a class of tests."""
    store = "return app.extensionManager.setting.set('Comfy.Locale', arguments[0])"
    page.js(store, "zh")
    yield
    page.js(store, "en")
    page.load()


@pytest.mark.usefixtures("chinese")
class TestInChinese:
    @pytest.mark.parametrize("kind", NODES)
    def test_help_opens(self, comfy, page, kind):
        page.load()
        text = opened_help(page, kind)
        page.shot(f"help-{kind}-zh-{comfy.version}-{comfy.front_end}")
        assert heading(HELP / kind / "zh.md") in text
        assert "遇到问题时" in text
