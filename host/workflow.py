"""API-format workflows: read, find nodes, set inputs. Plain dictionaries, no network."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from .errors import UserError

Workflow = dict[str, dict[str, Any]]


def load(path: Path) -> Workflow:
    """An API-format workflow from a file.

    Raises: UserError for anything else, also for one that was saved for the editor.
    """
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.name} is not a JSON file ({error})", "give a workflow saved by Export (API)"
        ) from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        # The body of POST /prompt, as some tools save it.
        data = data["prompt"]
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        twin = path.parent / "api" / path.name
        step = f"queue {twin}" if twin.is_file() else "in ComfyUI use Workflow > Export (API)"
        raise UserError(f"{path.name} is a workflow in the editor's format", step)
    good = (
        isinstance(data, dict)
        and data
        and all(
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
            for node in data.values()
        )
    )
    if not good:
        raise UserError(
            f"{path.name} is JSON but no API workflow", "give a workflow saved by Export (API)"
        )
    return data


def title(workflow: Workflow, node_id: str) -> str:
    """The node's title, or its class."""
    node = workflow.get(node_id, {})
    return str(node.get("_meta", {}).get("title") or node.get("class_type") or node_id)


def of_class(workflow: Workflow, class_type: str) -> list[str]:
    """Ids of the nodes of one class, in the file's order."""
    return [name for name, node in workflow.items() if node["class_type"] == class_type]


def matches(workflow: Workflow, name: str) -> list[str]:
    """Ids that a name can mean: an id before titles before classes."""
    if name in workflow:
        return [name]
    own_titles = {i: str(node.get("_meta", {}).get("title", "")) for i, node in workflow.items()}
    classes = {i: node["class_type"] for i, node in workflow.items()}
    for names in (own_titles, classes):
        found = [i for i, given in names.items() if given.casefold() == name.casefold()]
        if found:
            return found
    return []


def find(workflow: Workflow, name: str) -> str:
    """The one node that a name means.

    Raises: UserError if there is none, or several.
    """
    found = matches(workflow, name)
    if not found:
        raise UserError(f"the workflow has no node {name!r}", f"name one of {_shown(workflow)}")
    if len(found) > 1:
        raise UserError(
            f"{name!r} means {len(found)} nodes", f"use an id: {_shown(workflow, found)}"
        )
    return found[0]


def _shown(workflow: Workflow, ids: list[str] | None = None) -> str:
    return ", ".join(f"{i} ({title(workflow, i)})" for i in (ids or list(workflow))[:20])


def parse_set(workflow: Workflow, text: str) -> tuple[str, str, Any]:
    """'NODE.INPUT=VALUE' -> (node id, input, value); VALUE is read as JSON where it is JSON.

    NODE and INPUT may have dots themselves. Raises: UserError.
    """
    left, equals, raw = text.partition("=")
    if not equals or "." not in left.strip("."):
        raise UserError(
            f"--set {text!r} is not NODE.INPUT=VALUE",
            "write for example --set DCTNetCartoon.style_strength=0.9",
        )
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    parts = left.split(".")
    splits = [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]
    # An input that is there decides; else the shortest node name that exists.
    known = [(node, name) for node, name in splits if matches(workflow, node) and name]
    for node, name in known:
        ids = matches(workflow, node)
        if len(ids) == 1 and name in workflow[ids[0]]["inputs"]:
            return ids[0], name, value
    node, name = known[0] if known else splits[0]
    return find(workflow, node), name, value


def with_inputs(workflow: Workflow, changes: dict[tuple[str, str], Any]) -> Workflow:
    """A copy with inputs set: {(node id, input): value}."""
    changed = copy.deepcopy(workflow)
    for (node_id, name), value in changes.items():
        changed[node_id]["inputs"][name] = value
    return changed


def input_names(info: dict[str, Any]) -> list[str]:
    """The input names of a node's /object_info entry."""
    given = info.get("input", {})
    return [*given.get("required", {}), *given.get("optional", {})]


def options(info: dict[str, Any], name: str) -> list[str]:
    """The choices of a combo in a node's /object_info entry, in either of its two notations."""
    given = info.get("input", {})
    spec = given.get("required", {}).get(name) or given.get("optional", {}).get(name) or []
    if spec and isinstance(spec[0], list):
        return [str(value) for value in spec[0]]
    if len(spec) > 1 and isinstance(spec[1], dict):
        return [str(value) for value in spec[1].get("options", [])]
    return []


def refusal(workflow: Workflow, body: dict[str, Any]) -> str:
    """What POST /prompt's refusal says, per node, in one line."""
    parts = []
    for node_id, entry in (body.get("node_errors") or {}).items():
        # The host says what a node's own check found once for each input that the check has seen.
        reasons = dict.fromkeys(map(_reason, entry.get("errors", [])))
        parts.append(f"node {node_id} ({title(workflow, node_id)}): {', '.join(reasons)}")
    if parts:
        return "; ".join(parts)
    error = body.get("error") or body
    if isinstance(error, dict):
        said = [str(error[key]) for key in ("message", "details") if error.get(key)]
        return " ".join(said) or json.dumps(error)
    return str(error)


def _reason(error: dict[str, Any]) -> str:
    details = error.get("details") or ""
    if error.get("type") == "custom_validation_failed":
        # 'input - what the check said'
        return details.partition(" - ")[2] or details
    return " ".join(filter(None, (error.get("message"), details)))
