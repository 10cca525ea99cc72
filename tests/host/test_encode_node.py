"""EncodeForEdit in a real ComfyUI: what encode_cases.py finds in the host's own process."""

from __future__ import annotations

import comfy_hosts
import pytest

NEW = "index_timestep_zero"


found = comfy_hosts.found_by("encode_cases.py", limit_s=300)


def test_the_reference_is_the_picture_bit_for_bit(found) -> None:
    references = found["references"]
    assert references["equal"] and references["same in both"]
    assert references["from the host's"] <= 1e-5
    assert references["shapes"] == [[1, 16, 1, 12, 8], [1, 16, 1, 12, 6]]
    assert references["entries"] == [1, 1]


def test_the_latent_is_empty_or_the_picture(found) -> None:
    references = found["references"]
    assert references["empty"] == [[1, 16, 1, 12, 8], 0]
    assert references["from the picture"] and references["dtype"]
    assert found["start"]["denoise 0"] == 0.0


def test_the_report_says_what_the_model_is_shown(found) -> None:
    lines = found["references"]["report"].splitlines()
    assert lines[:4] == [
        "working size: 64×96; latent 8×12",
        "Picture 1 (image): kept at 64×96, 24 tokens; vision copy 84×140, 15 tokens",
        "Picture 2 (image_2): scaled to 62×96, 48.0 %; cut to 48×96, 18 tokens; vision copy"
        " 84×140, 15 tokens",
        "text tokens: 53 positive, 53 negative",
    ]
    assert lines[4].startswith("reference method: auto")
    assert lines[5:] == ["start: noise, for denoise 1"]


@pytest.mark.parametrize("pictures", ["one", "two"])
def test_the_words_and_tokens_are_those_of_the_hosts_own_node(found, pictures: str) -> None:
    words = found["words"][pictures]
    assert words["asked the same"] == [True, True]
    assert all(ours == theirs for ours, theirs in words["shapes"])
    assert words["copies"][0] == [1, 476, 308, 3]


def test_what_the_text_encoder_sees_is_what_the_hosts_own_node_shows_it(found) -> None:
    """To rounding where the ways to scale agree; scaled better, but alike, where they do not."""
    words = found["words"]
    assert words["of a plain picture"] < 1e-4
    assert words["of a photo"] < 0.05
    assert words["sees"] > 0.1, "another picture gives other numbers"
    assert words["extras"] == ["reference_latents"]


def test_auto_is_what_each_model_was_made_for(found) -> None:
    method = found["method"]
    known = method["known"]
    knows_2511 = NEW in known
    assert known[0] == "auto" and {"index", "offset"} < set(known)
    for right in ["index", NEW] if knows_2511 else ["index"]:
        apart = method[right]
        assert apart[right] == apart["auto"] == 0.0
        assert all(apart[name] > 1e-3 for name in known if name not in (right, "auto")), apart


def test_a_method_that_is_chosen_is_set_in_both(found) -> None:
    for name, said in found["method"]["said"].items():
        assert said == ([None, None] if name == "auto" else [name, name])
    for name, report in zip(found["method"]["known"], found["method"]["reports"], strict=True):
        assert f"reference method: {name}" in report


def test_a_batch_is_edited_picture_by_picture(found) -> None:
    batch = found["batch"]
    assert batch["shape"] == [2, 16, 1, 8, 6] and batch["entries"] == 1
    assert batch["references 0"] == batch["references 1"] == [True, True]
    # Another batch size is another order of summing.
    assert max(batch["apart"]) < 1e-5 * batch["pictures apart"]
    assert "48×64, 2 pictures" in batch["report"]


@pytest.mark.parametrize("name", ["opaque", "clear", "grey", "beyond", "half", "smallest", "strip"])
def test_odd_pictures_run(found, name: str) -> None:
    odd = found["odd"][name]
    assert odd["finite"] and odd["as expected"]
    note = {"clear": "alpha onto white", "beyond": "values outside 0–1 clamped"}.get(name)
    assert odd["report"].splitlines()[5:] == ([f"image: {note}"] if note else [])


def test_the_picture_itself_is_left_alone(found) -> None:
    assert found["odd"]["left alone"]


@pytest.mark.parametrize(
    ("size", "latent", "told"),
    [
        ("50×33", [4, 6], "scaled to 48×32, 96.0 %, 6 tokens"),
        ("5×5", [2, 2], "scaled to 16×16, 320.0 %, 1 token;"),
        ("20×600", [60, 2], "scaled to 16×480"),
        ("48×64", [8, 6], "kept at 48×64"),
        ("480×640", [8, 6], "scaled to 48×64"),
    ],
)
def test_further_references_of_any_size(found, size: str, latent: list, told: str) -> None:
    shape, line = found["sizes"][size]
    assert shape == latent
    assert line.startswith("Picture 2 (image_3): ") and told in line


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unaligned", "image: expected sides that are multiples of 16, got 48×60"),
        ("nan", "image: expected numbers, got 2 pixels of NaN"),
        ("nan 2", "image_2: expected numbers"),
        ("not a picture", "image: expected pictures"),
        ("batch", "image_2: expected 1 picture, got 3"),
        ("vae", "vae: expected Qwen-Image's VAE (16 channels, 3 dimensions), got one of 4"),
        ("no vae", "got none"),
        ("clip", "clip: expected the text encoder Qwen2.5-VL 7B, loaded as qwen_image, got one"),
        ("no clip", "got none"),
        ("method", "reference_method: expected one of auto"),
    ],
)
def test_what_does_not_fit_says_what_to_do(found, name: str, told: str) -> None:
    text = found["refusals"][name]
    assert text.startswith("InputError: ")
    assert told in text and "Next step: " in text
    if name == "unaligned":
        assert "Prepare Image before it, multiple_of 16" in text


def test_choices_are_checked_before_the_run(found) -> None:
    fine, start, method = found["refusals"]["validated"]
    assert fine is True
    assert start.startswith("start: expected one of noise, picture")
    assert method.startswith("reference_method: expected one of auto")
