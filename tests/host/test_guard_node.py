"""VRAMGuard in a real ComfyUI, on tiny weights: what guard_cases.py finds in the host's own
process, and what the API answers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import comfy_hosts
import pytest
from graphs import Graph, outcome
from realtoon.host.errors import UserError

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
import qwen_weights  # noqa: E402  (the makers of tiny weights lie with the unit tests)

PLACES = (
    *("sampling OUTER_SAMPLE", "sampling PREPARE_SAMPLING", "sampling SAMPLER_SAMPLE"),
    *("sampling CALC_COND_BATCH", "sampling DIFFUSION_MODEL"),
    *("loading for text", "loading for sample", "loading for encode"),
    *("text's layers", "text's vision part"),
    *("encode, in strips", "decode, in strips", "decode by the host"),
)
"""Where a run is broken; see guard_cases.injections."""
PHASES = ("text encoding", "picture encoding", "DiT", "decode")


found = comfy_hosts.found_by("guard_cases.py", limit_s=900)


@pytest.mark.parametrize("way", ["adapt", "warn", "stop"])
def test_where_there_is_room_a_guarded_run_gives_the_same_bits(found, way: str) -> None:
    """Latents, texts and pictures."""
    assert found["same"][way] == [0, 0, 0]


def test_guarded_clones_pass_their_guard_on(found) -> None:
    same = found["same"]
    assert same["clones"] == [True] * 3 and same["shared"]
    assert same["clone of clones"] == [0, "GuardedModelPatcher"]
    assert same["guarded twice"] == [0, 1], "the last guard alone measures"
    assert same["alone"] == [None, None, 0]


def test_the_plan_is_told_before_and_what_was_measured_after(found) -> None:
    same = found["same"]
    report = same["report"]
    assert report.startswith("64×64: ") and "are there: fits" in report
    assert all(f"\n{phase}: " in report for phase in ("text encoding", "DiT", "decode"))
    assert "no card here" in report and "measured, DiT: " in report
    for way in ("adapt", "warn", "stop"):
        node, text = same[f"{way} said"]
        assert node == "7" and "GB of main memory in this process (a card: " in text
        assert all(f"measured, {phase}: " in text for phase in PHASES)
    shape, low, high = same["chart"]
    assert shape == [1, 540, 960, 3] and 0 <= low < 0.2 and high == 1


def test_with_nothing_loaded_the_node_changes_nothing(found) -> None:
    assert found["nothing_loaded"] == {"same": True, "entries": 0, "guarded": 5}


def test_the_host_is_as_it_was_after_a_run_an_error_an_interrupt_and_a_full_card(found) -> None:
    """Its functions and settings, what is loaded, patchers and weights; and the next run's bits."""
    broken = found["broken"]
    kinds = ("error", "interrupt", "memory")
    assert set(broken) == {"run", *(f"{place} {what}" for place in PLACES for what in kinds)}
    for name, (met, again, left) in broken.items():
        assert (met, again, left) == (True, 0, []), name


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("text's layers", "text encoding"),
        ("text's vision part", "text encoding"),
        ("encode, in strips", "picture encoding"),
        ("sampling DIFFUSION_MODEL", "DiT"),
        ("decode, in strips", "decode"),
        ("decode by the host", "decode"),
    ],
)
def test_what_lives_for_a_moment_within_a_phase_is_measured(found, place: str, phase: str) -> None:
    """300 MB that are gone when the phase ends."""
    assert list(found["phases"][place]) == [phase]
    assert 250e6 < found["phases"][place][phase] < 400e6


def test_stop_ends_before_the_model_is_loaded_and_says_what_helps(found) -> None:
    stops = found["stops"]
    for name in ("at once", "at the sampler"):
        message, entries = stops[name]
        assert entries == 0, name
        assert "predicted in" in message and "at 64×64" in message
        assert "at most 0.70 GB" in message and "Next step: " in message
        assert "GB too much" in message and "set on_exceed to adapt" in message


def test_adapt_and_warn_go_on_and_say_so(found) -> None:
    stops = found["stops"]
    # Parted conditionings are multiplied in other batches.
    assert stops["adapt"][0] <= 1e-4 and stops["warn"][0] == 0
    assert "short" in stops["adapt"][1].splitlines()[0]


def test_another_kind_of_model_is_refused(found) -> None:
    message = found["stops"]["other model"]
    assert "expected Qwen-Image-Edit" in message and "SDXL" in message and "Next step" in message


def test_conditionings_are_parted_where_the_plan_asks_for_it(found) -> None:
    parted = found["parted"]
    assert 0 <= parted["apart"] <= 1e-4
    assert parted["job"] == [64, 64, [[64, 64]], 7, 2] and parted["at once"] == 2
    assert parted["parted after"] is False


def test_no_graph_overruns_a_budget_or_the_card(found) -> None:
    """Whole graphs on a card that is simulated; see random_graphs."""
    graphs = found["graphs"]
    assert graphs["graphs"] >= 40 and graphs["guarded loads"] > 100 and graphs["checks"] > 120
    assert graphs["partly"] > 10 and graphs["broken"] > 10
    assert graphs["overruns"] == []
    assert graphs["leftovers"] == []
    assert graphs["would overrun unguarded"] > 0, "where it only warns, the host overruns"


def test_graphs_on_a_small_card_give_what_they_give_without(found) -> None:
    differences = dict(found["graphs"]["differences"])
    # The host rounds a folded LoRA otherwise where its layer stays in main memory.
    assert differences.pop("with a LoRA") < 0.1 * found["graphs"]["what a LoRA changes"]
    assert set(differences) == {"text", "encode", "sample", "decode", "decode by the host"}
    assert max(differences.values()) <= 1e-4


def test_a_smaller_budget_takes_layers_off_and_patches_none_twice(found) -> None:
    """The host alone would leave them on the card, uncounted, and patch them again."""
    uncounted, most = found["patched_once"]["host"]
    assert uncounted > 0 and most == 2, "the host does so by itself now: _take_off can go"
    assert found["patched_once"]["guarded"] == [0, 1]


def test_with_room_all_of_a_model_is_on_the_card(found) -> None:
    assert found["patched_once"]["with room"] == 0


def test_the_allocators_ceiling_holds_in_phases_and_is_put_back(found) -> None:
    """With a phase within another one, and an error at the end."""
    assert found["ceiling"]["told"] == {
        "12000000000": [0.5, 0.5, 0.5, 0.9],
        "None": [],
        "23000000000": [0.9, 0.9, 0.9, 0.9],
    }


def test_a_phase_within_another_hides_nothing_of_its_peak(found) -> None:
    assert found["ceiling"]["measured"] == {"DiT": 9, "decode": 5}
    assert found["ceiling"]["others"] == 6


def test_pages_are_held_to_the_budget_after_each_load(found) -> None:
    """Whole ones, less what lies beside them."""
    assert found["paged"] == {"pages": [2], "asked": [5000]}


# --- through the API ------------------------------------------------------------------------------


def graph(**wishes: object) -> Graph:
    """A loader of tiny weights, the guard, and two steps of its model."""
    made = Graph()
    choices = {"modulation": "table", "attention": "auto", "weight_dtype": "as stored"}
    folder = {"text_encoder": "from the folder", "vae": "from the folder", "offload": "auto"}
    loader = made.add("QwenEditLoader", base="guarded/", **folder, **choices)
    asked = {"card_gb": 0.0, "text_encoder_gb": 0.0, "dit_gb": 0.0, "vae_gb": 0.0}
    asked |= {"reserve_gb": 0.5, "width": 64, "height": 64, "on_exceed": "adapt", **wishes}
    links = {name: [loader, place] for place, name in enumerate(("model", "clip", "vae"))}
    guard = made.add("VRAMGuard", **links, **asked)
    model, clip, vae = ([guard, place] for place in range(3))
    latent = [made.add("EmptySD3LatentImage", width=64, height=64, batch_size=1), 0]
    text = [made.add("CLIPTextEncode", clip=clip, text="a person"), 0]
    how = {"seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    texts = {"positive": text, "negative": text}
    sampled = made.add("KSampler", model=model, latent_image=latent, denoise=1.0, **texts, **how)
    made.save([made.add("VAEDecode", samples=[sampled, 0], vae=vae), 0])
    made.save([guard, 4])
    return made


@pytest.fixture
def tiny(comfy):
    """An official folder that the host's own tokenizer can run."""
    folder = comfy.server.base / "models/diffusers/guarded"
    sizes = qwen_weights.Sizes(vocabulary=152064)
    yield qwen_weights.write_official(folder, sizes, edition="2509")
    shutil.rmtree(folder)


def test_a_guarded_graph_runs_and_shows_its_chart(comfy, tiny: Path) -> None:
    sizes = {picture.size for picture in comfy.pictures(comfy.run(graph()))}
    assert sizes == {(64, 64), (960, 540)}


def test_stop_is_said_on_the_node(comfy, tiny: Path) -> None:
    asked = graph(on_exceed="stop", card_gb=1.2)
    failure = outcome(comfy, comfy.do(lambda client: client.submit(asked)))
    assert isinstance(failure, UserError)
    assert "VRAM Guard: expected at most 0.70 GB" in str(failure)


def test_a_way_that_is_none_is_refused(comfy, tiny: Path) -> None:
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(graph(on_exceed="hope"))
    assert "on_exceed" in str(refusal.value)
