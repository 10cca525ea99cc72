"""The shipped workflows as tests need them: files, boxes, and UI format turned into API format.

A twin in workflows/api is what ComfyUI's Export (API) makes of the file to drag in.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

TITLE_PX = 30
NOTES = ("Note", "MarkdownNote")
# Nodes that exist in the browser only.
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode")
MUTED, BYPASSED = 2, 4
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")


def load(name: str) -> dict:
    """The workflow in the editor's format."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def load_twin(name: str) -> dict:
    """The same workflow in API format."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


def by_id(workflow: dict) -> dict[int, dict]:
    return {node["id"]: node for node in workflow["nodes"]}


@dataclass(frozen=True)
class Box:
    """A rectangle on the canvas, in its units."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def encloses(self, other: "Box") -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


def node_box(node: dict) -> Box:
    """The node with its title, which the front end draws above `pos`; collapsed, that is all."""
    (x, y), (width, height) = node["pos"], node["size"]
    if node["flags"].get("collapsed"):
        height = 0
    return Box(x, y - TITLE_PX, width, height + TITLE_PX)


def group_box(group: dict) -> Box:
    return Box(*group["bounding"])


def widgets_in_file(node: dict) -> list[str | None]:
    """The widgets that the node's own entry lists, in the order of widgets_values.

    None: a value that is the browser's alone (an upload button, what happens after a run).
    """
    names: list[str | None] = []
    values = node.get("widgets_values") or []
    for given in node["inputs"]:
        if "widget" in given:
            names.append(None if given["type"] == "IMAGEUPLOAD" else given["widget"]["name"])
            if len(values) > len(names) and values[len(names)] in _AFTER_GENERATE:
                names.append(None)
    return names


def widgets_of_class(info: dict) -> list[str | None]:
    """The same, from the node's /object_info entry."""
    names: list[str | None] = []
    for part in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(part, {}).items():
            options = rest[0] if rest else {}
            if not (isinstance(kind, list) or kind in _WIDGET_TYPES) or options.get("forceInput"):
                continue
            names.append(name)
            seed = name in ("seed", "noise_seed") and kind == "INT"
            if options.get("control_after_generate") or seed or options.get("image_upload"):
                names.append(None)
    return names


def ui_to_api(workflow: dict, object_info: dict | None = None) -> dict:
    """What the front end's graphToPrompt sends for a workflow in the editor's format.

    object_info: the host's; without it the widgets' names come from the file itself.
    Subgraphs are not known here. Raises: ValueError for those.
    """
    if workflow.get("definitions", {}).get("subgraphs"):
        raise ValueError("subgraphs are not converted")
    nodes = by_id(workflow)
    prompt = {}
    for node in sorted(workflow["nodes"], key=lambda node: node["order"]):
        if node["type"] in VIRTUAL or node["mode"] in (MUTED, BYPASSED):
            continue
        names = widgets_of_class(object_info[node["type"]]) if object_info else None
        names = widgets_in_file(node) if names is None else names
        values = node.get("widgets_values") or []
        inputs = {name: value for name, value in zip(names, values, strict=True) if name}
        for given in node["inputs"]:
            value = _source(workflow, nodes, given.get("link"))
            if value is not None:
                inputs[given["name"]] = value
        title = node.get("title") or node["type"]
        prompt[str(node["id"])] = {
            "inputs": inputs,
            "class_type": node["type"],
            "_meta": {"title": title},
        }
    return prompt


def _source(workflow: dict, nodes: dict[int, dict], link_id: int | None):
    """[node id, slot] behind a link, a primitive's value, or None for nothing."""
    links = {link[0]: link for link in workflow["links"]}
    while link_id is not None:
        _, origin_id, slot, *_ = links[link_id]
        origin = nodes[origin_id]
        if origin["mode"] == MUTED:
            return None
        if origin["type"] == "PrimitiveNode":
            return origin["widgets_values"][0]
        if origin["type"] == "Reroute":
            link_id = origin["inputs"][0]["link"]
        elif origin["mode"] == BYPASSED:
            link_id = _bypass(origin, slot)
        else:
            return [str(origin_id), slot]
    return None


def _bypass(node: dict, slot: int) -> int | None:
    """The link that a bypassed node passes on: of the same slot if it fits, else the first.

    An input of the very type goes before one that takes anything.
    """
    kind = node["outputs"][slot]["type"]
    same = [given for given in node["inputs"][slot : slot + 1] if given["type"] in (kind, "*")]
    exact = [given for given in node["inputs"] if given["type"] == kind]
    anything = [given for given in node["inputs"] if given["type"] == "*"]
    return next((given["link"] for given in [*same, *exact, *anything]), None)
