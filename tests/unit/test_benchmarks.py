"""The benchmark's own rules: what counts as short, and that its clocks and scales measure."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("name", ["cartoon", "restore"])
@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--photo", "no/such/photo.png"], ["--rounds", "many"]]
)
def test_wrong_arguments_end_before_anything_runs(name, arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(arguments)
    assert ended.value.code == 1
    written = capsys.readouterr().err
    assert arguments[0] in written and f"bench {name}" in written
    assert written.count("\n") == 1


ALL = sorted(file.stem for file in BENCHMARKS.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", ALL)
def test_every_group_of_a_benchmark_exists(name) -> None:
    import _command

    benchmark = importlib.import_module(name).BENCHMARK
    assert benchmark.name == name
    for only in benchmark.groups:
        assert _command.parse(benchmark, ["--quick", "--only", only]).rounds == 3


def benchmark(apart=(), **groups):
    """A benchmark of these groups; each takes settings and yields rows."""
    from _command import Benchmark

    return Benchmark("Sample", "told", "described", "\n- How.\n", groups, {}, ("torch",), apart)


def test_a_group_that_breaks_is_short_and_the_others_are_measured(capsys) -> None:
    from _command import run
    from _table import Row

    def breaks(settings):
        yield Row("before", "1", bound="1", met=True)
        raise RuntimeError("no luck")

    def works(settings):
        yield Row("after", f"{settings.rounds} rounds", bound="2", met=True)

    assert run(benchmark(breaks=breaks, works=works), ["--rounds", "2", "--threads", "1"]) == 1
    shown = capsys.readouterr().out
    assert "failed: RuntimeError: no luck" in shown and "2 rounds" in shown
    assert "2 met, 1 short" in shown
    assert run(benchmark(breaks=breaks, works=works), ["--only", "works"]) == 0


def test_a_benchmark_writes_its_own_section_and_keeps_the_others(tmp_path) -> None:
    from _command import run
    from _docs import HEAD, read, write
    from _table import Row

    page = tmp_path / "benchmarks.md"
    write(page, "Zebra", "| ## not a title |\n\nwritten by hand")
    write(page, "Cartoon", "first")
    before = page.read_bytes()
    sample = benchmark(one=lambda settings: iter([Row("what", "1 s", bound="2 s", met=True)]))
    run(sample, ["--markdown", str(page)])
    run(sample, ["--markdown", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith(HEAD) and text.endswith("by hand\n")
    assert list(read(page)) == ["Cartoon", "Sample", "Zebra"]
    assert read(page)["Zebra"] == "| ## not a title |\n\nwritten by hand\n"
    assert text.count("| what | 1 s |  |  | 2 s | met |") == 1
    assert "- How.\n\nMeasured on: " in read(page)["Sample"]
    write(page, "Sample", "gone")
    assert page.read_text(encoding="utf-8").replace("## Sample\n\ngone\n\n", "").encode() == before


def test_what_takes_long_runs_when_it_is_named_and_has_a_section_of_its_own(tmp_path) -> None:
    from _command import run
    from _docs import read
    from _table import Row

    def rows(what):
        return lambda settings: iter([Row(what, "1 s")])

    page = tmp_path / "benchmarks.md"
    sample = benchmark(usual=rows("short"), slow=rows("long"), apart=("slow",))
    for more in ([], ["--only", "slow"]):
        assert run(sample, ["--markdown", str(page), *more]) == 0
    sections = read(page)
    assert list(sections) == ["Sample", "Sample: slow"]
    assert "short" in sections["Sample"] and "long" not in sections["Sample"]
    assert "long" in sections["Sample: slow"] and "- How." not in sections["Sample: slow"]


def test_the_page_in_the_docs_is_one_that_the_benchmarks_write() -> None:
    from _docs import HEAD, read

    page = BENCHMARKS.parent / "docs" / "benchmarks.md"
    assert page.read_text(encoding="utf-8").startswith(HEAD)
    for title, text in read(page).items():
        name, _, apart = title.partition(": ")
        made = importlib.import_module(name.lower()).BENCHMARK
        if apart:
            assert set(apart.split(", ")) <= set(made.apart)
            assert text.startswith("Measured on: ")
        else:
            wrong = f"{title}: its notes are others than the command writes"
            assert text.startswith(made.notes.strip()), wrong


def test_a_child_gives_its_last_line_or_says_why_not(tmp_path, monkeypatch) -> None:
    import _child

    script = tmp_path / "child.py"
    script.write_text(
        "import sys\nprint('noise')\nif sys.argv[1] == 'bad':\n    sys.exit('no such thing')\n"
        "print('{\"got\": \"' + sys.argv[1] + '\"}')\n",
        encoding="utf-8",
    )
    assert _child.measured(str(script), ["one"]) == {"got": "one"}
    with pytest.raises(_child.ChildError, match="no such thing"):
        _child.measured(str(script), ["bad"])


# --- simulated memory -----------------------------------------------------------------------------

MEGA = 1 << 20


def floats(device: str = "meta") -> torch.Tensor:
    """One mebibyte."""
    return torch.empty(MEGA // 4, device=device)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_live_memory_rises_and_falls(device) -> None:
    from _live import LiveBytes

    with torch.no_grad(), LiveBytes() as live:
        first = floats(device)
        assert (live.now, live.peak) == (MEGA, MEGA)
        second = first + 1
        third = second * 2
        assert live.now == 3 * MEGA
        del second
        assert live.now == 2 * MEGA
        fourth = third + first
        assert (live.now, live.peak) == (3 * MEGA, 3 * MEGA)
        del first, third, fourth
        assert (live.now, live.peak) == (0, 3 * MEGA)


def test_what_passes_between_two_operations_counts() -> None:
    """The second sum's operand dies only after its result is there."""
    from _live import LiveBytes

    with torch.no_grad(), LiveBytes() as live:
        (floats() + 1).add(1).add(1)
    assert live.peak == 2 * MEGA


def test_views_and_what_happens_in_place_take_nothing() -> None:
    from _live import LiveBytes

    given = floats()
    with torch.no_grad(), LiveBytes([given, given[1:]]) as live:
        view = given.view(2, -1).t()[1:]
        view.add_(1)
        given.relu_()
        del given
        assert live.now == live.peak == MEGA  # the view holds it
        del view
        assert live.now == 0


def test_results_of_several_tensors_count_each() -> None:
    from _live import LiveBytes

    with torch.no_grad(), LiveBytes() as live:
        values, places = torch.empty(1024, device="meta").sort()
    assert live.peak == 4 * 1024 + values.nbytes + places.nbytes
    assert places.dtype == torch.int64


def test_a_networks_peak_has_its_weights_and_input() -> None:
    from _live import peak_bytes

    with torch.device("meta"):
        layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(5)))
        peak = peak_bytes(layers, torch.empty(1024, 256))
    assert peak == 5 * 256 * 256 * 4 + 3 * MEGA  # the input, a layer's own input, its output
