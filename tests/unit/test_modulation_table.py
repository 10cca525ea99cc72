"""The modulation table on a small stand-in for the DiT: bit-equal answers, what is kept and when it
is let go. With the real DiT and its samplers: tests/host/test_modulation_in_host.py."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import modulation_table as tables
from realtoon.engine.modulation_table import Fold
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


class Block(nn.Module):
    """The two modulations of a block; ``zero`` doubles the picture's rows as references do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, embedding, zero: bool):
        img = self.img_mod(embedding)
        return [img, self.txt_mod(embedding.chunk(2)[0] if zero else embedding)]


class Embedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, dim)

    def forward(self, timestep, hidden):
        waves = torch.stack([torch.sin(timestep * k) for k in (1, 7, 50, 300)], dim=1)
        return self.linear(waves.to(hidden.dtype))


class DiT(nn.Module):
    def __init__(self, dim: int = 24, blocks: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.time_text_embed = Embedding(dim)
        self.transformer_blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.to(dtype)

    def forward(self, timestep, zero: bool = False):
        hidden = torch.zeros(len(timestep), 5, 2, dtype=next(self.parameters()).dtype)
        if zero:
            timestep = torch.cat([timestep, timestep * 0])
        embedding = self.time_text_embed(timestep, hidden)
        return [out for block in self.transformer_blocks for out in block(embedding, zero)]


def twins(**size):
    """A plain model, the same one with a table, and its table."""
    torch.manual_seed(3)
    plain = DiT(**size)
    weights = {n: t.clone() for n, t in plain.state_dict().items() if tables.is_modulation(n)}
    tabled = copy.deepcopy(plain)
    return plain, tabled, tables.attach(tabled, weights.__getitem__)


def same(plain, tabled, timestep, zero=False) -> bool:
    with torch.no_grad():
        pairs = zip(plain(timestep, zero), tabled(timestep, zero), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=15, deadline=None)
@given(
    timesteps=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5),
    mixed=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=3),
    batch=st.integers(1, 4),
    zero=st.booleans(),
    announced=st.booleans(),
    dim=st.integers(1, 40),
)
def test_bit_equal(timesteps, mixed, batch, zero, announced, dim, dtype) -> None:
    """Twice each: computed, then read; rows of one batch alike or not."""
    plain, tabled, table = twins(dim=dim, blocks=2, dtype=dtype)
    if announced:
        table.set_schedule(torch.tensor(timesteps))
    for _ in range(2):
        for each in timesteps:
            assert same(plain, tabled, torch.full((batch,), each), zero)
        assert same(plain, tabled, torch.tensor(mixed), zero)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_gets_the_bits_of_its_own_size(dtype: torch.dtype) -> None:
    """Kernels sum in another order for one row than for several; the table must not mix them."""
    torch.manual_seed(0)
    dim = 768
    plain = DiT(dim=dim, blocks=1, dtype=dtype)
    weights = {n: t.clone() for n, t in plain.state_dict().items() if tables.is_modulation(n)}
    tabled = copy.deepcopy(plain)
    table = tables.attach(tabled, weights.__getitem__)
    table.set_schedule(torch.tensor([0.8, 0.3]))
    for batch in (1, 2, 3, 8, 1):
        for zero in (False, True):
            for step in (0.8, 0.3, 0.55):
                assert same(plain, tabled, torch.full((batch,), step), zero)


def test_rows_whose_place_in_a_batch_matters_are_kept_as_a_whole() -> None:
    """No kernel seen does so; one that did would still be answered exactly."""
    _, tabled, _ = twins()
    layer = tabled.transformer_blocks[0].img_mod[1]
    row, other = torch.rand(2, 144)
    alone, apart, alike = (tables.Key(("here",), rows) for rows in ((1,), (1, 1), (1, 1, 1)))
    layer.learn(alone, row[None])
    layer.learn(apart, torch.stack([row, other]))
    layer.learn(alike, torch.stack([row, row, row]))
    assert torch.equal(layer._answer(alone), row[None])
    assert torch.equal(layer._answer(apart), torch.stack([row, other]))
    assert torch.equal(layer._answer(alike), torch.stack([row, row, row]))
    assert sum(kept.nbytes for kept in layer.held()) == 3 * row.nbytes
    new = tables.Key(("here",), (2, 2))
    layer.learn(new, torch.stack([row, other]))
    assert torch.equal(layer._answer(new), torch.stack([row, other]))


@pytest.mark.parametrize("inference", [False, True])
def test_an_embedding_that_changes_in_its_memory_is_seen(inference: bool) -> None:
    """As a captured graph does it: other numbers at the same address in the next pass."""
    plain, tabled, _ = twins()
    with torch.inference_mode(inference), torch.no_grad():
        embedding = torch.randn(2, 24)
        for _ in range(3):
            embedding.copy_(torch.randn(2, 24))
            for one, other in zip(plain.transformer_blocks, tabled.transformer_blocks, strict=True):
                pairs = zip(one(embedding, True), other(embedding, True), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)


def test_a_schedule_is_filled_in_one_pass_over_the_weights() -> None:
    _, tabled, table = twins()
    lent = []
    provider = table.provider
    table.provider = lambda name: (lent.append(name), provider(name))[1]
    steps = torch.tensor([1.0, 0.7, 0.3, 0.0])
    table.set_schedule(steps)
    for step in steps[:-1]:
        tabled(step.repeat(2), zero=True)
    assert len(lent) == len(set(lent)) == 3 * 2 * 2
    assert table.fills == 6
    tabled(torch.tensor([0.5, 0.5]), zero=True)
    assert table.fills == 12, "a timestep between the scheduled ones is filled when it is met"


def test_planned_bytes_are_the_bytes_held() -> None:
    _, tabled, table = twins(dtype=torch.bfloat16)
    steps = torch.linspace(1, 0, 8)
    table.set_schedule(steps)
    for zero in (True, False):
        table.clear()
        for step in steps[:-1]:
            tabled(step.repeat(2), zero=zero)
        assert table.bytes == table.planned_bytes(7, torch.bfloat16, zero_rows=zero) > 0


def test_another_schedule_lets_the_rows_go_and_the_same_one_keeps_them() -> None:
    plain, tabled, table = twins()
    table.set_schedule(torch.tensor([1.0, 0.5]))
    tabled(torch.tensor([1.0]))
    held = table.bytes
    table.set_schedule(torch.tensor([1.0, 0.5]))
    assert table.bytes == held > 0
    table.set_schedule(torch.tensor([1.0, 0.4]))
    assert table.bytes == 0
    assert same(plain, tabled, torch.tensor([0.4]))


def test_memory_stays_within_the_limit() -> None:
    plain, tabled, table = twins()
    table.limit_rows = 8
    table.set_schedule(torch.linspace(1, 0, 50))
    most = 0
    for step in torch.linspace(1, 0, 50):
        assert same(plain, tabled, step.repeat(2), zero=True)
        most = max(most, table.bytes)
    assert most <= 8 * 3 * 2 * 6 * 24 * 4


def test_the_weights_are_no_parameters_but_their_names_resolve() -> None:
    plain, tabled, table = twins()
    gone = sum(t.nbytes for n, t in plain.state_dict().items() if tables.is_modulation(n))
    assert gone > 0
    assert tables.resident_bytes(tabled) == tables.resident_bytes(plain) - gone
    held, expected = tabled.state_dict(), plain.state_dict()
    assert list(held) == list(expected)
    assert all(torch.equal(held[name], expected[name]) for name in expected)
    assert torch.equal(tabled.transformer_blocks[1].img_mod[1].weight, expected[
        "transformer_blocks.1.img_mod.1.weight"
    ])  # fmt: skip
    assert [n for n, _ in tabled.named_parameters() if "_mod" in n] == []


@pytest.mark.parametrize("with_modulation", [True, False])
def test_a_state_dict_loads_with_and_without_them(with_modulation: bool) -> None:
    plain, tabled, _ = twins()
    state = {n: t for n, t in plain.state_dict().items() if with_modulation or "_mod." not in n}
    missing, unexpected = tabled.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])


def doubled(mark: object) -> Fold:
    return Fold(mark, lambda weight, device: weight * 2)


def test_folds_change_the_rows_of_their_layers_only() -> None:
    plain, tabled, table = twins()
    step = torch.tensor([0.5])
    assert same(plain, tabled, step)
    name = "transformer_blocks.1.txt_mod.1.weight"
    filled = table.fills
    table.set_folds({name: doubled("a")})
    twice = copy.deepcopy(plain)
    twice.get_parameter(name).data *= 2
    assert same(twice, tabled, step)
    assert table.fills == filled + 1
    table.set_folds({name: doubled("a")})
    assert same(twice, tabled, step)
    assert table.fills == filled + 1, "an equal mark keeps the rows"
    assert torch.equal(tabled.state_dict()[name], twice.state_dict()[name]), "as it is saved"
    table.set_folds({})
    assert same(plain, tabled, step)
    assert torch.equal(tabled.state_dict()[name], plain.state_dict()[name])


def test_whoever_wraps_a_layers_forward_is_heard() -> None:
    plain, tabled, _ = twins()
    layer = tabled.transformer_blocks[0].img_mod[1]
    original = layer.forward
    layer.forward = lambda x: original(x) + x.sum()
    step = torch.tensor([0.5])
    assert not same(plain, tabled, step)
    layer.forward = original
    assert same(plain, tabled, step)


def test_weights_are_rounded_to_a_dtype_first() -> None:
    torch.manual_seed(0)
    plain = DiT()
    weights = {n: t.clone() for n, t in plain.state_dict().items() if tables.is_modulation(n)}
    tabled = copy.deepcopy(plain)
    tables.attach(tabled, weights.__getitem__, torch.bfloat16)
    assert not same(plain, tabled, torch.tensor([0.5]))
    for name in weights:
        plain.get_parameter(name).data = weights[name].bfloat16().float()
    assert same(plain, tabled, torch.tensor([0.5]))


def test_a_dropped_model_takes_rows_and_weights_along_at_once() -> None:
    _, tabled, table = twins()
    table.set_schedule(torch.tensor([1.0, 0.5]))
    tabled(torch.tensor([1.0]), zero=True)
    gone = weakref.ref(table)
    gc.disable()
    try:
        del tabled, table
        assert gone() is None
    finally:
        gc.enable()


def test_shapes_alone_pass_through() -> None:
    """Memory is planned on fake tensors: no weight is lent, nothing is kept."""
    _, tabled, table = twins()
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = tabled(torch.ones(2), zero=True)
    assert [tuple(out.shape) for out in outputs] == [(4, 144), (2, 144)] * 3
    assert tuple(
        tabled.transformer_blocks[0](torch.ones(2, 24, device="meta"), False)[0].shape
    ) == (
        2,
        144,
    )
    assert table.bytes == 0 and table.fills == 0


def test_other_models_and_shapes_are_refused_and_nothing_changes() -> None:
    with pytest.raises(ValueError, match="transformer_blocks"):
        tables.attach(nn.Linear(2, 2), {}.__getitem__)
    plain = DiT()
    weights = {n: t for n, t in plain.state_dict().items() if tables.is_modulation(n)}
    name = "transformer_blocks.2.txt_mod.1.bias"
    weights[name] = weights[name][:-1]
    with pytest.raises(ValueError, match=r"2\.txt_mod\.1\.bias.*\(144,\), got \(143,\)"):
        tables.attach(plain, weights.__getitem__)
    assert isinstance(plain.transformer_blocks[0].img_mod[1], nn.Linear)
    plain.transformer_blocks[1].img_mod = nn.Sequential(nn.ReLU(), nn.Linear(24, 144))
    with pytest.raises(ValueError, match=r"1\.img_mod: expected SiLU and Linear"):
        tables.attach(plain, weights.__getitem__)


def test_names() -> None:
    assert tables.is_modulation("transformer_blocks.59.txt_mod.1.bias")
    assert not tables.is_modulation("diffusion_model.transformer_blocks.5.txt_mod.1.bias")
    assert not tables.is_modulation("transformer_blocks.5.img_mlp.net.2.weight")
    assert not tables.is_modulation("transformer_blocks.5.img_mod.1.weight_scale")
