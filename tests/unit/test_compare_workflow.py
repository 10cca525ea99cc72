"""The workflow that lays three LoRA versions side by side, as a file."""

import re

import workflow_files as wf
from realtoon.host import arguments, workflow

COMPARE = "compare_loras"


def test_three_versions_differ_in_nothing_but_their_lora():
    twin = wf.load_twin(COMPARE)
    classes = {key: node["class_type"] for key, node in twin.items()}
    [save] = [node["inputs"] for node in twin.values() if node["class_type"] == "ResultCaption"]
    [preset] = [key for key, kind in classes.items() if kind == "EditPreset"]
    [seed] = [key for key, kind in classes.items() if kind == "PrimitiveInt"]
    samplers, loras = [], []
    for letter, number in zip("ABC", ("", "_2", "_3"), strict=True):
        frame = twin[save["image" + number][0]]
        decode = twin[frame["inputs"]["image"][0]]
        sampler = twin[decode["inputs"]["samples"][0]]
        inputs = dict(sampler["inputs"])
        lora, slot = inputs.pop("model")
        # Its own name stands below its own picture.
        assert (slot, save["weight" + number]) == (0, [lora, 1])
        passed = [frame, decode, sampler, twin[lora]]
        assert [(node["class_type"], node["_meta"]["title"]) for node in passed] == [
            ("RestoreFraming", f"Frame {letter}"),
            ("TiledVAEDecode", f"Decode {letter}"),
            ("KSampler", f"Sample {letter}"),
            ("LoRAHotInject", f"LoRA {letter}"),
        ]
        assert twin[lora]["inputs"].pop("lora") == "none"
        samplers.append(inputs)
        loras.append(twin[lora]["inputs"])
    for these in (samplers, loras):
        assert these[0] == these[1] == these[2]
    assert loras[0]["model"] == [preset, 0]
    assert samplers[0]["seed"] == [seed, 0]
    assert [classes[samplers[0][name][0]] for name in ("positive", "negative", "latent_image")] == [
        "EncodeForEdit"
    ] * 3
    outputs = [out["name"] for out in wf.by_id(wf.load(COMPARE))[int(preset)]["outputs"]]
    for name in ("steps", "cfg", "sampler_name", "scheduler", "denoise"):
        assert samplers[0][name] == [preset, outputs.index(name)]
    assert [save[name] for name in ("cfg", "steps", "sampler")] == [
        [preset, outputs.index(name)] for name in ("cfg", "steps", "settings")
    ]
    assert save["draw"] == "below"


def test_the_seed_stays_so_that_only_what_was_changed_is_drawn_again():
    nodes = wf.load(COMPARE)["nodes"]
    seeds = [node for node in nodes if node["type"] in ("PrimitiveInt", "KSampler")]
    assert len(seeds) == 4
    assert all(node["widgets_values"][1] == "fixed" for node in seeds)


def test_the_note_on_series_names_what_is_in_the_graph_that_it_queues():
    [text] = [
        node["widgets_values"][0]
        for node in wf.load(COMPARE)["nodes"]
        if node["title"] == "More than three"
    ]
    [command] = re.findall(r"`python run\.py (.+?)`", text)
    given = arguments.build().parse_args(command.split())
    assert given.workflow == "workflows/api/realistic_1024.json"
    graph = workflow.load(wf.FOLDER.parent / given.workflow)
    sets = [workflow.parse_set(graph, each) for each in given.set]
    assert [(graph[key]["class_type"], name) for key, name, _ in sets] == [
        ("KSampler", "seed"),
        ("LoRAHotInject", "lora"),
        ("LoRAHotInject", "lora"),
    ]
    assert all(name in graph[key]["inputs"] for key, name, _ in sets)
