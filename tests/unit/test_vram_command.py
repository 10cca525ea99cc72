"""`run.py plan`: what it prints, what it answers, and that it needs nothing made."""

from __future__ import annotations

import pytest
from realtoon.host import bootstrap, plan


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = bootstrap.main(["plan", "realistic", *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_official_model_fits_24_gb_at_1024(capsys, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("REALTOON_CACHE", str(cache))
    code, told = planned(capsys)
    assert code == 0 and "1024×1024: " in told and "fits" in told
    assert all(f"\n{phase}: " in told for phase in ("text encoding", "DiT", "decode"))
    assert "simulations" in told
    assert not cache.exists()


def test_a_smaller_card_streams(capsys) -> None:
    code, told = planned(capsys, "--card", "12", "--size", "1536")
    assert code == 0 and "1536×1536" in told
    assert "the DiT streams 4.80 GB a step" in told


def test_what_does_not_fit_names_what_does(capsys) -> None:
    code, told = planned(capsys, "--card", "3", "--size", "4096", "--weights", "bf16")
    assert code == 1 and "short; the largest that fits is " in told


@pytest.mark.parametrize(
    "words", [("--size", "0"), ("--card", "-1"), ("--weights", "int4"), ("--card", "many")]
)
def test_a_wrong_wish_is_one_line(capsys, words: tuple[str, ...]) -> None:
    code, told = planned(capsys, *words)
    assert code == 1 and "Next step" in told and len(told.strip().splitlines()) == 1


def test_the_sizes_are_those_of_the_simulated_model() -> None:
    """As benchmarks/_realistic_memory.py finds them on the host's own modules."""
    fp8, bf16 = (plan.weights(dtype).bytes for dtype in ("fp8", "bf16"))
    assert (fp8["dit"], bf16["dit"]) == (13_633_416_768, 27_266_833_536)
    assert (fp8["text_encoder"], bf16["text_encoder"]) == (8_292_166_656, 15_494_338_560)
    assert fp8["vae"] == bf16["vae"] == 253_785_062
    assert fp8["table"] == bf16["table"] == 134_922_240
