"""Streamed decode and encode against the whole network in its plainest form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import streamed_decode as sd
from realtoon.engine import wan_vae
from realtoon.engine.row_network import MOST_HALVINGS, Hooks, RowNetwork
from torch import nn
from wan_vae_plain import NEW, OLD, AttentionBlock, CausalConv3d, WanVAE

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
from _decode_peak import streamed_peak  # noqa: E402  (counts bytes that are alive)

CPU = torch.device("cpu")
EXACT = 1e-11
"""In float64: where nothing but the order of sums differs."""


PLAIN = WanVAE().double().eval()


@pytest.fixture
def vae() -> WanVAE:
    return PLAIN


def latent(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, height, width, generator=draw, dtype=torch.float64)


def pixels(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, height, width, 3, generator=draw, dtype=torch.float64) * 2 - 1


def decoder(vae: nn.Module, dtype: torch.dtype = torch.float64) -> RowNetwork:
    return wan_vae.read_decoder(vae, dtype, CPU)


def encoder(vae: nn.Module, dtype: torch.dtype = torch.float64) -> RowNetwork:
    return wan_vae.read_encoder(vae, dtype, CPU)


def streamed(network, given, rows, hooks=None, dtype=torch.float64, **more):
    """(decoded picture, how it went)."""
    out = torch.full((len(given), 8 * given.shape[2], 8 * given.shape[3], 3), torch.nan).to(dtype)
    return out, sd.decode(network, given, out, rows, hooks=hooks, **more)


def back(network, given, rows, hooks=None):
    """(encoded latent, how it went)."""
    out = torch.full((len(given), 16, given.shape[1] // 8, given.shape[2] // 8), torch.nan).double()
    return out, sd.encode(network, given, out, rows, hooks=hooks)


@torch.no_grad()
def whole(vae: nn.Module, given: torch.Tensor) -> torch.Tensor:
    return vae.decode(given[:, :, None])[:, :, 0].permute(0, 2, 3, 1)


@torch.no_grad()
def whole_latent(vae: nn.Module, given: torch.Tensor) -> torch.Tensor:
    return vae.encode(given.permute(0, 3, 1, 2)[:, :, None])[:, :, 0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@settings(max_examples=10, deadline=None, database=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_any_size_in_any_strips_is_the_whole_decode(height, width, rows, seed) -> None:
    given_ = latent(height, width, seed)
    out, told = streamed(decoder(PLAIN), given_, rows)
    assert apart(out, whole(PLAIN, given_)) < EXACT
    assert told.halvings == 0 and told.rows == rows


@settings(max_examples=10, deadline=None, database=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_any_size_in_any_strips_is_the_whole_encode(height, width, rows, seed) -> None:
    given_ = pixels(8 * height, 8 * width, seed)
    out, _ = back(encoder(PLAIN), given_, rows)
    assert apart(out, whole_latent(PLAIN, given_)) < EXACT


def test_both_forms_of_padding_are_read() -> None:
    old, new = WanVAE(form=OLD), WanVAE(form=NEW)
    assert old.decoder.conv1._padding != new.decoder.conv1._padding
    given_ = latent(4, 5)
    outs = [streamed(decoder(each, torch.float64), given_, 2)[0] for each in (old, new)]
    assert torch.equal(*outs)
    latents = [back(encoder(each), pixels(16, 24), 1)[0] for each in (old, new)]
    assert torch.equal(*latents)


def test_other_numbers_would_be_seen(vae) -> None:
    given_ = latent(6, 6)
    before, _ = streamed(decoder(vae), given_, 2)
    conv = vae.decoder.upsamples[3].resample[1]
    with torch.no_grad():
        conv.weight[1, 2, 0, 1] += 1e-3
    after, _ = streamed(decoder(vae), given_, 2)
    expected = whole(vae, given_)
    with torch.no_grad():
        conv.weight[1, 2, 0, 1] -= 1e-3
    assert apart(after, expected) < EXACT < 1e-7 < apart(before, expected)


def test_float32_stays_within_1e_5_and_bfloat16_runs(vae) -> None:
    given_ = latent(7, 9)
    expected = whole(vae, given_)
    single, _ = streamed(decoder(vae, torch.float32), given_, 3)
    half, _ = streamed(decoder(vae, torch.bfloat16), given_, 3, dtype=torch.float32)
    assert apart(single, expected) < 1e-5
    assert 1e-5 < apart(half, expected) < 0.2 * float(expected.std()) * 10
    assert float((half - expected).abs().mean()) < 0.05 * float(expected.std())


def test_pictures_of_a_batch_do_not_touch_each_other(vae) -> None:
    given_ = latent(5, 4, batch=3)
    together, told = streamed(decoder(vae), given_, 2)
    alone = [streamed(decoder(vae), each[None], 2) for each in given_]
    assert torch.equal(together, torch.cat([out for out, _ in alone]))
    assert told.strips == sum(one.strips for _, one in alone)


def test_what_is_done_on_the_way_reaches_every_row(vae) -> None:
    given_ = latent(4, 4)
    plain, _ = streamed(decoder(vae), given_, 1)
    out, _ = streamed(
        decoder(vae), given_, 1, finish=lambda rows: rows.add_(1).div_(2).clamp_(0, 1)
    )
    assert torch.equal(out, ((plain + 1) / 2).clamp(0, 1))


# --- memory that runs out ------------------------------------------------------------------------


class FullError(Exception):
    """A device without memory."""


def failing(monkeypatch, at: set[int]) -> list[int]:
    """Let the calls of these numbers fail, of those that a strip makes for its work."""
    calls = [0]
    real = torch.nn.functional.conv2d

    def conv2d(*arguments, **named):
        calls[0] += 1
        if calls[0] in at:
            raise FullError
        return real(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    return calls


def hooks(events: list[str]) -> Hooks:
    return Hooks(
        lambda share: events.append(f"{share:.6f}"),
        lambda error: isinstance(error, FullError),
        lambda: events.append("released"),
    )


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_memory_that_runs_out_anywhere_costs_nothing_but_strips(vae, monkeypatch, way) -> None:
    """Once in each of a run's convolutions; the result is that of a run in peace."""
    if way == "decode":
        network, given_, run = decoder(vae), latent(8, 4), streamed
    else:
        network, given_, run = encoder(vae), pixels(64, 32), back
    calls = failing(monkeypatch, set())
    expected, peaceful = run(network, given_, 4)
    count = calls[0]
    assert count >= 28
    for number in range(1, count + 1):
        events: list[str] = []
        calls = failing(monkeypatch, {number})
        out, told = run(network, given_, 4, hooks(events))
        assert apart(out, expected) < EXACT, f"convolution {number}"
        assert told.halvings == events.count("released") == 1
        assert told.rows == 2 and told.strips > peaceful.strips
        monkeypatch.undo()


def test_attention_shrinks_by_itself(vae, monkeypatch) -> None:
    given_ = latent(8, 4)
    expected, _ = streamed(decoder(vae), given_, 4)
    real, calls = torch.nn.functional.scaled_dot_product_attention, []

    def attention(query, key, value):
        calls.append(query.shape[2])
        if query.shape[2] > 8:
            raise FullError
        return real(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    events: list[str] = []
    out, told = streamed(decoder(vae), given_, 4, hooks(events))
    assert apart(out, expected) < EXACT
    assert calls == [32, 16, 8, 8, 8, 8]
    assert told.rows == 4 and told.halvings == 2


def test_what_never_fits_ends_with_the_devices_own_error(vae, monkeypatch) -> None:
    failing(monkeypatch, set(range(1, 10_000)))
    events: list[str] = []
    with pytest.raises(FullError):
        streamed(decoder(vae), latent(1 << MOST_HALVINGS, 1), 1 << MOST_HALVINGS, hooks(events))
    assert 0 < events.count("released") <= MOST_HALVINGS


def test_other_errors_and_a_wish_to_stop_go_through(vae) -> None:
    class Stop(BaseException):
        pass

    shares: list[float] = []

    def step(share: float) -> None:
        shares.append(share)
        if len(shares) == 4:
            raise Stop

    network = decoder(vae)
    with pytest.raises(Stop):
        streamed(network, latent(16, 3), 2, Hooks(step))
    assert len(shares) == 4
    with pytest.raises(RuntimeError):
        streamed(network, latent(4, 4)[:, :3], 2, hooks([]))


def test_progress_is_the_share_of_the_work(vae) -> None:
    events: list[str] = []
    streamed(decoder(vae), latent(8, 8, batch=2), 2, hooks(events))
    assert sum(map(float, events)) == pytest.approx(2, abs=1e-3)
    assert all(float(each) >= 0 for each in events)


# --- memory that is taken ------------------------------------------------------------------------


def measured(network: RowNetwork, way: str, hw: tuple[int, int], rows: int) -> int:
    """Bytes beyond what goes in and what comes out, weights counted."""
    weights = sum(weight.nbytes for weight in network.weights)
    return streamed_peak(network, way, hw, rows) + weights


@pytest.mark.parametrize("way", ["decode", "encode"])
@pytest.mark.parametrize(("hw", "rows"), [((24, 24), 4), ((8, 24), 1), ((20, 12), 16)])
def test_the_predicted_peak_holds_and_is_not_far_off(way, hw, rows) -> None:
    vae = WanVAE(dim=16)
    read = wan_vae.read_decoder if way == "decode" else wan_vae.read_encoder
    network = read(vae, torch.float32, CPU)
    predicted, real = network.peak_bytes(hw, rows), measured(network, way, hw, rows)
    assert 0.98 * real <= predicted <= 1.5 * real


def test_memory_grows_with_the_strip_and_hardly_with_the_picture() -> None:
    with torch.device("meta"):
        vae = WanVAE(dim=32)
    network = wan_vae.read_decoder(vae, torch.float32, torch.device("meta"))
    low, high = (network.peak_bytes((256, 64), rows) for rows in (4, 32))
    assert high > 2 * low
    tall = network.peak_bytes((512, 64), 32)
    assert tall - high < 0.6 * high


def test_strips_are_as_high_as_memory_allows(vae) -> None:
    network = decoder(vae, torch.float32)
    hw = (128, 128)
    plenty = network.best_rows(hw, 1 << 40)
    for rows in (1, 2, 4, plenty):
        chosen = network.best_rows(hw, network.peak_bytes(hw, rows))
        assert chosen >= rows and network.peak_bytes(hw, chosen) <= network.peak_bytes(hw, rows)
    assert network.best_rows(hw, 0) == 1


# --- networks that are not known -----------------------------------------------------------------


def changed(change) -> WanVAE:
    vae = WanVAE()
    change(vae)
    return vae


def _other_middle(vae: WanVAE) -> None:
    vae.decoder.middle[1] = nn.Identity()


def _with_attention(vae: WanVAE) -> None:
    vae.decoder.upsamples.append(AttentionBlock(8))


def _other_mode(vae: WanVAE) -> None:
    vae.decoder.upsamples[1].mode = "upsample4d"


def _bicubic(vae: WanVAE) -> None:
    vae.decoder.upsamples[1].resample[0].mode = "bicubic"


def _more_context(vae: WanVAE) -> None:
    vae.decoder.conv1 = CausalConv3d(16, 32, 5, 2)


def _group_norm(vae: WanVAE) -> None:
    vae.decoder.head[0] = nn.GroupNorm(2, 8)


def _dilated(vae: WanVAE) -> None:
    vae.decoder.upsamples[1].resample[1].dilation = (2, 2)


def _four_times(vae: WanVAE) -> None:
    del vae.decoder.upsamples[5]


def _no_decoder(vae: WanVAE) -> None:
    del vae.decoder


@pytest.mark.parametrize(
    "change",
    [
        _other_middle, _with_attention, _other_mode, _bicubic, _more_context, _group_norm,
        _dilated, _four_times, _no_decoder,
    ],
)  # fmt: skip
def test_a_network_of_another_kind_is_refused_by_name(change) -> None:
    with pytest.raises(wan_vae.UnknownNetworkError, match="expected"):
        decoder(changed(change))
    with pytest.raises(wan_vae.UnknownNetworkError, match="WanVAE"):
        decoder(nn.Sequential())


def test_an_encoder_with_other_borders_is_refused(vae) -> None:
    other = WanVAE()
    other.encoder.downsamples[1].resample[0] = nn.ZeroPad2d((1, 1, 1, 1))
    with pytest.raises(wan_vae.UnknownNetworkError, match="to the right and below"):
        encoder(other)


def test_a_third_of_the_taps_is_copied_and_the_weights_stay() -> None:
    vae = WanVAE(dim=16)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    network = wan_vae.read_decoder(vae, torch.float32, CPU)
    streamed(network, latent(3, 3), 2, dtype=torch.float32)
    held = sum(weight.nbytes for weight in network.weights)
    own = sum(p.nbytes for p in (*vae.decoder.parameters(), *vae.conv2.parameters()))
    assert held < 0.45 * own
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    storages = {p.untyped_storage().data_ptr() for p in vae.parameters()}
    assert not storages & {w.untyped_storage().data_ptr() for w in network.weights}
