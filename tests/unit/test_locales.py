"""The texts that ComfyUI's front end shows: every language speaks of every input of every node."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir() if folder.is_dir())
# The front end's message format gives these a meaning of their own.
SPECIAL = set("{}@|")


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def keywords(call: ast.Call) -> dict[str, Any]:
    found = {}
    for keyword in call.keywords:
        if keyword.arg is not None and isinstance(keyword.value, ast.Constant):
            found[keyword.arg] = keyword.value.value
    return found


def calls(tree: ast.Module, name: str) -> list[ast.Call]:
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
    ]
    return sorted(found, key=lambda call: call.lineno)


def schemas() -> dict[str, dict[str, Any]]:
    """The texts in nodes/*.py in the locales' form, read from the source: no host needed."""
    made = {}
    for path in sorted((ROOT / "nodes").glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for schema in map(keywords, calls(tree, "schema")):
            inputs = {
                call.args[0].value: {"name": call.args[0].value, **tooltip(call)}
                for call in calls(tree, "Input")
                if isinstance(call.args[0], ast.Constant)
            }
            outputs = {
                str(index): {"name": keywords(call)["display_name"], **tooltip(call)}
                for index, call in enumerate(calls(tree, "Output"))
            }
            made[schema["node_id"]] = {
                "display_name": schema["display_name"],
                "description": schema["description"],
                "inputs": inputs,
                "outputs": outputs,
            }
    return made


def tooltip(call: ast.Call) -> dict[str, str]:
    return {"tooltip": keywords(call).get("tooltip", "")}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    found = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{path}/{key}"))
    return found


SCHEMAS = schemas()


def test_the_nodes_were_found() -> None:
    assert {"DCTNetCartoon", "PrepareImage"} <= set(SCHEMAS)
    for node_id, schema in SCHEMAS.items():
        for where, text in leaves(schema).items():
            assert text, f"{node_id}{where} is empty in the schema"


def test_english_is_the_schema() -> None:
    assert read("en", "nodeDefs.json") == SCHEMAS


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nodeDefs.json", "main.json"])
def test_every_language_has_every_text(language: str, name: str) -> None:
    texts = leaves(read(language, name))
    assert texts.keys() == leaves(read("en", name)).keys()
    for where, text in texts.items():
        assert isinstance(text, str), where
        assert text.strip(), where
        assert not SPECIAL & set(text), where


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node_id", sorted(SCHEMAS))
def test_help_speaks_of_every_input_and_output(language: str, node_id: str) -> None:
    folder = ROOT / "web" / "docs"
    page = folder / f"{node_id}.md" if language == "en" else folder / node_id / f"{language}.md"
    text = page.read_text(encoding="utf-8")
    schema = SCHEMAS[node_id]
    for name in [*schema["inputs"], *(out["name"] for out in schema["outputs"].values())]:
        assert f"| `{name}`" in text, f"{page.name} says nothing of {name}"
