"""`run.py queue`: which jobs pictures and values make, and what their files are called."""

import pytest
from realtoon.host import queue_jobs


class Server:
    """Knows one node."""

    async def object_info(self, kind):
        return {"input": {"required": {"lora": [[]], "strength": ["FLOAT"]}}}


GRAPH = {"5": {"class_type": "LoRAHotInject", "inputs": {"lora": "none", "strength": 1}}}


def settled(*sets):
    """--set's values without an event loop: nothing in them waits."""
    waiting = queue_jobs._settings(Server(), GRAPH, [("5", *each) for each in sets])
    with pytest.raises(StopIteration) as over:
        waiting.send(None)
    return over.value.value


def test_values_of_several_inputs_are_combined():
    choices = settled(("lora", "none"), ("strength", 0.5), ("lora", "a.safetensors"))
    choices = {("1", "image"): [("up/one.png", "one"), ("two.png", "two")]} | choices
    jobs = queue_jobs._jobs(choices)
    assert [told for told, _ in jobs] == ["one_none", "one_a", "two_none", "two_a"]
    assert jobs[1][1] == {
        ("1", "image"): "up/one.png", ("5", "lora"): "a.safetensors", ("5", "strength"): 0.5,
    }  # fmt: skip


def test_a_value_that_is_the_same_in_all_jobs_is_in_no_name():
    assert queue_jobs._jobs(settled(("lora", "a.safetensors"))) == [
        ("", {("5", "lora"): "a.safetensors"})
    ]
    assert queue_jobs._jobs({}) == [("", {})]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("qwen\\art v0715.safetensors", "art-v0715"),
        ("风格/v1.5.safetensors", "v1.5"),
        ("风格.safetensors", "风格"),
        ("@~/photos/me.JPG", "me"),
        (0.5, "0.5"),
        (True, "True"),
        ("a man: tall?", "a-man-tall"),
        ("..", ""),
        ("x" * 300, "x" * 60),
    ],
)
def test_a_value_in_a_files_name(value, told):
    assert queue_jobs._told(value) == told
