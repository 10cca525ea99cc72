"""API workflows as dictionaries: reading, naming nodes, --set, and what a refusal says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtoon.host import workflow
from realtoon.host.errors import UserError

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Photo"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 1, "policy.gb": 2.0}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 2}, "_meta": {"title": "v1.5 pass"}},
    "12:4": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.image=b.png", ("1", "image", "b.png")),
        ("Photo.image=b.png", ("1", "image", "b.png")),
        ("photo.image=b=c.png", ("1", "image", "b=c.png")),
        ("LoadImage.image=", ("1", "image", "")),
        ("2.seed=7", ("2", "seed", 7)),
        ("2.policy.gb=12.5", ("2", "policy.gb", 12.5)),
        ("v1.5 pass.seed=[1, 2]", ("3", "seed", [1, 2])),
        ("12:4.filename_prefix=true", ("12:4", "filename_prefix", True)),
        ('12:4.filename_prefix="true"', ("12:4", "filename_prefix", "true")),
        ("SaveImage.new=null", ("12:4", "new", None)),
    ],
)
def test_set(text, expected):
    assert workflow.parse_set(GRAPH, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=3", "is not NODE.INPUT=VALUE"),
        ("2.seed", "is not NODE.INPUT=VALUE"),
        ("=", "is not NODE.INPUT=VALUE"),
        ("Nobody.seed=3", "no node 'Nobody'"),
        ("KSampler.seed=3", "means 2 nodes.*2 .*3 "),
    ],
)
def test_a_set_that_means_nothing_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        workflow.parse_set(GRAPH, text)


@given(value=st.text())
def test_any_text_is_a_value(value):
    node, name, got = workflow.parse_set(GRAPH, f"1.image={value}")
    assert (node, name) == ("1", "image")
    try:
        assert json.dumps(got) == json.dumps(json.loads(value))
    except ValueError:
        assert got == value


def test_inputs_are_set_in_a_copy():
    changed = workflow.with_inputs(GRAPH, {("2", "seed"): 9, ("1", "image"): "z.png"})
    assert (changed["2"]["inputs"]["seed"], changed["1"]["inputs"]["image"]) == (9, "z.png")
    assert GRAPH["2"]["inputs"]["seed"] == 1


def write(tmp_path, content):
    path = tmp_path / "graph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize("wrap", [lambda g: g, lambda g: {"prompt": g, "client_id": "x"}])
def test_an_api_workflow_loads(tmp_path, wrap):
    assert workflow.load(write(tmp_path, wrap(GRAPH))) == GRAPH


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not a JSON file"),
        ([], "no API workflow"),
        ({}, "no API workflow"),
        ({"1": {"inputs": {}}}, "no API workflow"),
        ({"1": {"class_type": "A", "inputs": []}}, "no API workflow"),
        ({"nodes": [], "links": [], "version": 0.4}, r"Export \(API\)"),
    ],
)
def test_everything_else_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        workflow.load(write(tmp_path, content))


def test_the_editors_format_points_at_its_shipped_twin(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "graph.json").write_text("{}")
    with pytest.raises(UserError, match=r"queue .*api.graph\.json"):
        workflow.load(write(tmp_path, {"nodes": []}))


def test_combo_choices_in_both_notations():
    old = {"input": {"required": {"style": [["a", "b"], {}]}}}
    new = {"input": {"optional": {"style": ["COMBO", {"options": ["a", "b"]}]}}}
    assert workflow.options(old, "style") == workflow.options(new, "style") == ["a", "b"]
    assert workflow.options(old, "nothing") == []


def test_what_a_nodes_own_check_said_is_told_once():
    said = "model: expected weights, got none"
    errors = [
        {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"{name} - {said}",
        }
        for name in ("model", "tile_px")
    ]
    body = {"node_errors": {"3": {"errors": errors}}}
    assert workflow.refusal(GRAPH, body) == f"node 3 (v1.5 pass): {said}"
    # Without a reason the input is all there is to tell.
    errors[1]["details"] = "tile_px"
    assert workflow.refusal(GRAPH, body).endswith(f"{said}, tile_px")


def test_a_refusal_names_every_node_and_reason():
    body = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "1": {"errors": [{"message": "Value not in list", "details": "image: 'a'"}]},
            "3": {"errors": [{"message": "Too small"}, {"message": "Too big", "details": "x"}]},
        },
    }
    said = workflow.refusal(GRAPH, body)
    assert "node 1 (Photo): Value not in list image: 'a'" in said
    assert "node 3 (v1.5 pass): Too small, Too big x" in said
    assert workflow.refusal(GRAPH, {"error": {"message": "No outputs", "details": "d"}}) == (
        "No outputs d"
    )
    assert workflow.refusal(GRAPH, {"error": "plain"}) == "plain"
