"""The benchmark's own rules: what counts as short, and that its clocks and scales measure."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_only_a_missed_bound_is_short(capsys) -> None:
    from _table import Row, Table, missing

    table = Table("title")
    table.add(Row("kept", "1 s", bound="≤ 2 s", met=True))
    table.add(missing("absent", "install it", "≤ 2 s"))
    table.add(Row("told", "3 s"))
    assert table.short == []
    table.add(Row("missed", "3 s", "peer 1 s", "3.00 ×", "≤ 2 ×", met=False))
    assert [row.what for row in table.short] == ["missed"]
    table.show()
    shown = capsys.readouterr().out
    assert "1 met, 1 short, 1 not measured" in shown
    assert "SHORT" in shown
    assert table.markdown().count("\n") == 5
    assert "| missed | 3 s | peer 1 s | 3.00 × | ≤ 2 × | SHORT |" in table.markdown()


def test_ratio_is_taken_round_by_round() -> None:
    from _measure import ratio

    # A machine that is ten times slower in one round slows both sides.
    assert ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 0.5


def test_every_round_runs_every_call_and_the_first_one_changes() -> None:
    from _measure import interleaved

    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = interleaved(calls, 3, settle_s=0.0)
    assert order == list("abc") + list("abcbcacab")
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 3)


def test_memory_that_was_taken_and_given_back_is_seen() -> None:
    from _measure import PeakMemory

    if sys.platform != "linux":
        pytest.importorskip("psutil")
    watched = PeakMemory()
    with watched.watch():
        block = bytearray(b"\1") * (96 << 20)
        del block
    assert 90e6 < watched.growth < 250e6


@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--photo", "no/such/photo.png"], ["--rounds", "many"]]
)
def test_wrong_arguments_end_before_anything_runs(arguments, capsys) -> None:
    import cartoon

    with pytest.raises(SystemExit) as ended:
        cartoon.main(arguments)
    assert ended.value.code == 1
    written = capsys.readouterr().err
    assert arguments[0] in written
    assert written.count("\n") == 1
