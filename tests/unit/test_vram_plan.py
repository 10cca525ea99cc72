"""Memory predicted and planned: against simulated figures of the host's own networks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import vram_activations, vram_plan, vram_words
from realtoon.engine.vram_plan import DECODE, DIT, ENCODE, GB, TEXT, Job, Loaded, TextShape

FP8 = Loaded(
    dit={"float8_e4m3fn": 13_633_416_768},
    text_encoder={"float8_e4m3fn": 7_747_169_280},
    vae={"bfloat16": 253_785_062},
    table=134_922_240,
)
BF16 = Loaded(
    dit={"bfloat16": 27_266_833_536},
    text_encoder={"bfloat16": 15_494_338_560},
    vae={"bfloat16": 253_785_062},
    table=134_922_240,
)


def square(side: int, references: int = 1, **more: object) -> Job:
    return Job(width=side, height=side, references=((1024, 1024),) * references, **more)


@pytest.mark.parametrize(
    ("job", "simulated"),
    [
        (square(1024), 569_743_364),
        (square(1024, text_tokens=1000), 591_605_764),
        (square(1024, 0), 289_288_194),
        (square(1024, 3), 1_129_420_804),
        (square(768), 447_313_924),
        (square(1280), 727_152_644),
        (square(1536), 919_541_764),
        (square(1024, batch=2), 1_152_610_312),
    ],
)
def test_the_dits_activations_are_those_of_the_simulated_graph(job: Job, simulated: int) -> None:
    predicted = vram_plan.activations(BF16, job, DIT)
    assert 0.95 * simulated <= predicted <= 1.1 * simulated


@pytest.mark.parametrize(
    ("tokens", "dtype", "older", "newer"),
    [
        (268, "float8_e4m3fn", 342_159_072, 337_484_512),
        (1229, "bfloat16", 556_392_880, 538_187_440),
        (2289, "float8_e4m3fn", 809_844_052, 776_769_472),
        (2739, "float32", 863_693_996, 824_291_688),
        (4193, "bfloat16", 1_361_235_348, 1_301_382_616),
        (10744, "bfloat16", 4_022_434_976, 3_870_475_184),
    ],
)
def test_the_text_encoders_activations_are_those_of_the_simulated_graph(
    tokens: int, dtype: str, older: int, newer: int
) -> None:
    """On ComfyUI 0.3.75 and on 0.33, which holds a copy of the state less."""
    job = Job(vision=((384, 384),), text_tokens=tokens)
    predicted = vram_plan.activations(Loaded(text_encoder={dtype: GB}), job, TEXT)
    assert 0.95 * older <= predicted <= 1.1 * newer


@pytest.mark.parametrize(
    ("size", "dtype", "simulated"),
    [
        ((112, 112), "float8_e4m3fn", 106_203_136),
        ((384, 384), "float8_e4m3fn", 121_110_016),
        ((512, 768), "bfloat16", 145_126_656),
        ((1600, 1200), "bfloat16", 605_338_176),
    ],
)
def test_a_look_at_a_picture_takes_what_it_takes_in_the_simulated_graph(
    size: tuple[int, int], dtype: str, simulated: int
) -> None:
    predicted = vram_activations.vision(Loaded(text_encoder={dtype: GB}), size)
    assert 0.95 * simulated <= predicted <= 1.1 * simulated


@pytest.mark.parametrize(
    ("phase", "side", "precision", "rows", "simulated"),
    [
        (DECODE, 768, "fp32", 8, 237_935_180),
        (DECODE, 1024, "fp32", 8, 288_266_828),
        (DECODE, 1536, "bf16", 8, 199_183_654),
        (DECODE, 512, "fp32", 32, 344_103_500),
        (ENCODE, 768, "fp32", 8, 203_475_584),
        (ENCODE, 1536, "fp32", 8, 358_027_904),
        (ENCODE, 1024, "bf16", 8, 125_923_648),
        (ENCODE, 512, "bf16", 16, 110_582_080),
    ],
)
def test_the_strips_take_what_they_take_in_the_simulated_stream(
    phase: str, side: int, precision: str, rows: int, simulated: int
) -> None:
    job = Job(precision=precision, strip_rows=rows).scaled(side, side)
    predicted = vram_plan.activations(FP8, job, phase)
    assert 0.95 * simulated <= predicted <= 1.1 * simulated


def test_a_narrow_table_of_tokens_is_widened_as_a_whole() -> None:
    narrow = Loaded(text_encoder=FP8.text_encoder, text_shape=TextShape(narrow_embedding=True))
    assert vram_plan.activations(narrow, Job(), TEXT) > 2.1 * GB
    assert vram_plan.activations(FP8, Job(), TEXT) < 0.5 * GB


def test_at_1024_everything_stays_on_a_24_gb_card() -> None:
    prediction = vram_plan.predict(FP8, square(1024))
    assert prediction.peak <= 23.9 * GB
    alone = prediction.phase(DIT).resident
    assert alone["dit"] + alone["table"] + vram_plan.activations(FP8, square(1024), DIT) < 15.5 * GB
    assert sum(prediction.worst.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("loaded", [FP8, BF16], ids=["fp8", "bf16"])
@pytest.mark.parametrize("side", [768, 1024, 1280, 1536, 2048])
def test_the_ladder_fits_in_24_gb_with_half_a_gb_to_spare(loaded: Loaded, side: int) -> None:
    made = vram_plan.plan(loaded, Job().scaled(side, side), 24 * GB)
    assert made.fits
    assert made.prediction.peak <= 23.5 * GB
    assert all(phase.bytes <= 23.5 * GB for phase in made.prediction.phases)
    if loaded is FP8:
        assert made.streamed_a_step == 0


@pytest.mark.parametrize("card_gb", [16, 12, 8])
def test_a_smaller_card_streams_what_does_not_fit(card_gb: int) -> None:
    made = vram_plan.plan(FP8, square(1024), card_gb * GB)
    larger = vram_plan.plan(FP8, square(1024), (card_gb + 4) * GB)
    assert made.fits
    assert made.prediction.peak <= (card_gb - 0.5) * GB
    resident = made.resident[DIT]["dit"]
    assert made.streamed_a_step == FP8.bytes["dit"] - resident
    assert made.streamed_a_step >= larger.streamed_a_step
    assert "text_encoder" in made.leaving[DIT]


def test_what_cannot_fit_names_the_largest_size_that_does() -> None:
    made = vram_plan.plan(FP8, square(4096), 4 * GB)
    assert not made.fits
    assert made.short > 0
    assert made.largest is not None
    width, height = made.largest
    assert width == height
    assert width % 16 == 0
    job = made.job.scaled(width, height)
    assert vram_plan.plan(FP8, job, 4 * GB).fits
    larger = made.job.scaled(width + 16, height + 16)
    assert not vram_plan.plan(FP8, larger, 4 * GB).fits


def test_nothing_fits_in_next_to_nothing() -> None:
    made = vram_plan.plan(FP8, square(1024), GB)
    assert (made.fits, made.largest) == (False, None)


def test_a_budget_is_kept_although_the_card_has_room() -> None:
    made = vram_plan.plan(FP8, square(1024), 24 * GB, budgets={"dit": 10 * GB})
    assert all(here.get("dit", 0) <= 10 * GB for here in made.resident.values())
    assert made.streamed_a_step == FP8.bytes["dit"] - 10 * GB


def test_joined_conditionings_are_parted_before_weights_stream() -> None:
    job = square(2048, conditionings=2, at_once=2)
    card = FP8.bytes["dit"] + FP8.table + 4 * GB
    made = vram_plan.plan(FP8, job, card)
    assert made.job.at_once == 1
    assert made.streamed_a_step == 0
    roomy = vram_plan.plan(FP8, job, 48 * GB)
    assert roomy.job.at_once == 2


def test_strips_get_lower_where_that_keeps_everything_on_the_card() -> None:
    job = Job(strip_rows=32)
    roomy = vram_plan.plan(FP8, job, 48 * GB)
    assert roomy.job.strip_rows == 32
    everything = vram_plan.predict(FP8, replace(job, strip_rows=8)).phase(DECODE).bytes
    tight = vram_plan.plan(FP8, job, everything + vram_plan.RESERVE)
    assert tight.job.strip_rows == 8
    assert tight.resident[DECODE]["dit"] == FP8.bytes["dit"]
    lower = vram_plan.activations(FP8, tight.job, DECODE)
    assert lower < vram_plan.activations(FP8, roomy.job, DECODE)


def test_strips_stay_where_the_rest_can_leave() -> None:
    assert vram_plan.plan(FP8, Job(strip_rows=32), 16 * GB).job.strip_rows == 32


def test_strips_get_lower_where_the_vae_alone_is_too_much() -> None:
    job = Job(strip_rows=32).scaled(4096, 4096)
    alone = vram_plan.alone(FP8, replace(job, strip_rows=8)).phase(DECODE).bytes
    assert vram_plan.plan(FP8, job, alone + vram_plan.RESERVE).job.strip_rows == 8


def test_alone_is_what_a_phase_uses_and_nothing_else() -> None:
    job = square(1024)
    alone = vram_plan.alone(FP8, job)
    assert dict(alone.phase(DIT).resident) == {"dit": FP8.bytes["dit"], "table": FP8.table}
    assert dict(alone.phase(TEXT).resident) == {"text_encoder": FP8.bytes["text_encoder"]}
    assert alone.peak < vram_plan.predict(FP8, job).peak
    size = vram_plan.largest_alone(FP8, square(2048), alone.peak)
    assert size is not None and 1024 <= size[0] < 2048
    assert vram_plan.alone(FP8, square(2048).scaled(*size)).peak <= alone.peak


def test_a_plan_is_told_in_words() -> None:
    lines = vram_words.told(vram_plan.plan(FP8, square(1024), 12 * GB), FP8)
    assert lines[0].startswith("1024×1024: ") and lines[0].endswith("are there: fits")
    assert any(line.startswith("DiT: ") and "activations 0.57 GB" in line for line in lines)
    assert any("leaves for DiT: 7.75 GB of the text encoder" in line for line in lines)
    assert any("streams" in line and "a step" in line for line in lines)
    tight = vram_words.told(vram_plan.plan(FP8, square(4096), 4 * GB), FP8)
    assert "the largest that fits is" in tight[0]


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 256),
    st.integers(1, 256),
    st.integers(0, 3),
    st.integers(0, 4000),
    st.integers(1, 4),
    st.integers(1, 48),
)
def test_a_plan_that_fits_never_predicts_more_than_there_is(
    across: int, down: int, references: int, tokens: int, batch: int, card_gb: int
) -> None:
    size = (16 * across, 16 * down)
    job = Job(*size, references=(size,) * references, text_tokens=tokens, batch=batch)
    made = vram_plan.plan(FP8, job, card_gb * GB)
    assert made.fits == (made.prediction.peak <= (card_gb * GB) - vram_plan.RESERVE)
    for here in made.resident.values():
        assert all(0 <= size <= FP8.bytes[name] for name, size in here.items())
    if made.fits:
        assert made.largest is None


def test_more_is_never_predicted_to_take_less() -> None:
    sizes = [vram_plan.predict(FP8, square(side)).peak for side in range(512, 2049, 256)]
    assert sizes == sorted(sizes)


def test_bytes_are_told_by_dtype() -> None:
    tensors = [torch.empty(3, device="meta"), torch.empty(2, dtype=torch.bfloat16)]
    assert vram_plan.by_dtype(tensors) == {"float32": 12, "bfloat16": 4}


@pytest.mark.parametrize(
    "job",
    [
        Job(width=8),
        Job(references=((8, 1024),)),
        Job(batch=0),
        Job(conditionings=1, at_once=2),
        Job(precision="fp16"),
        Job(text_tokens=-1),
    ],
)
def test_what_is_no_job_is_refused(job: Job) -> None:
    with pytest.raises(ValueError, match="expected"):
        vram_plan.predict(FP8, job)
