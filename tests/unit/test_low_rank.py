"""Adapters beside a layer against the same adapters multiplied out into its weight, in fp64."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine import low_rank
from realtoon.engine.low_rank import Beside, Injected, Use
from torch import Tensor, nn

KINDS = ("lora", "mid", "loha", "wide loha", "tucker loha", "lokr", "lokr pair", "tucker lokr")
KINDS += ("lokr of four", "diff", "bias")
OUT, IN = 24, 36


class Adapter(NamedTuple):
    """As weights_loader.lora reads one."""

    kind: str
    tensors: dict[str, Tensor]
    scale: float = 1.0


def made(what: str, seed: int = 0, magnitude: bool = False, scale: float = 0.7) -> Adapter:
    chance = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance) * 0.4

    tensors = {
        "lora": lambda: {"down": some(4, IN), "up": some(OUT, 4), "up_bias": some(OUT)},
        "mid": lambda: {"down": some(4, IN, 1, 1), "up": some(OUT, 5, 1, 1), "mid": some(5, 4)},
        "loha": lambda: _hada(some, 2),
        "wide loha": lambda: _hada(some, 6),
        "tucker loha": lambda: {
            **_hada(some, 3),
            **{f"w{i}_a": some(3, OUT) for i in (1, 2)},
            **{f"t{i}": some(3, 3, 1, 1) for i in (1, 2)},
        },
        "lokr": lambda: {"w1": some(4, 6), "w2": some(6, 6)},
        "lokr pair": lambda: {"w1": some(4, 6), "w2_a": some(6, 2), "w2_b": some(2, 6)},
        "tucker lokr": lambda: {
            "w1": some(4, 6), "w2_a": some(2, 6), "w2_b": some(2, 6), "t2": some(2, 2)
        },
        "lokr of four": lambda: {
            "w1_a": some(4, 2), "w1_b": some(2, 6), "w2_a": some(6, 2), "w2_b": some(2, 6)
        },
        "diff": lambda: {"diff": some(OUT, IN), "diff_b": some(OUT)},
        "bias": lambda: {"diff_b": some(OUT)},
    }[what]()  # fmt: skip
    kind = {"mid": "lora", "bias": "diff"}.get(what)
    kind = kind or next(each for each in ("lora", "loha", "lokr", "diff") if each in what)
    if magnitude:
        tensors["magnitude"] = some(OUT).abs() + 0.5
    return Adapter(kind, tensors, scale)


def _hada(some, rank: int) -> dict[str, Tensor]:
    sides = {f"w{i}_a": some(OUT, rank) for i in (1, 2)}
    return {**sides, **{f"w{i}_b": some(rank, IN) for i in (1, 2)}}


def weight_and_bias(seed: int = 9) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(OUT, IN, generator=chance), torch.randn(OUT, generator=chance)


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(IN, OUT)
    with torch.no_grad():
        for parameter, value in zip((linear.weight, linear.bias), weight_and_bias(), strict=True):
            parameter.copy_(value)
    return linear.to(dtype)


def matrix(adapter: Adapter) -> Tensor:
    """The change of the weight by its definition, (OUT,IN) fp64."""
    t = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    if adapter.kind == "lora":
        middle = t["mid"] if "mid" in t else torch.eye(4).double()
        found = t["up"].flatten(1) @ middle @ t["down"].flatten(1)
    elif adapter.kind == "loha" and "t1" in t:
        one, two = (
            torch.einsum("ijkl,jr,ip->prkl", t[f"t{i}"], t[f"w{i}_b"], t[f"w{i}_a"]).flatten(1)
            for i in (1, 2)
        )
        found = one * two
    elif adapter.kind == "loha":
        found = (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])
    elif adapter.kind == "lokr":
        w1 = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
        core = t.get("t2", torch.eye(2).double())
        first = t["w2_a"].t() if "t2" in t else t.get("w2_a")
        w2 = t["w2"] if "w2" in t else first @ core @ t["w2_b"]
        # By blocks: the definition of the Kronecker product.
        found = torch.cat([torch.cat([n * w2 for n in row], dim=1) for row in w1])
    else:
        found = t.get("diff", torch.zeros(OUT, IN).double())
    return found * adapter.scale


def exact(uses: list[Use], x: Tensor) -> Tensor:
    """What a layer with all adapters in its weight says, fp64."""
    weight, bias = (t.double() for t in weight_and_bias())
    new, new_bias = weight.clone(), bias.clone()
    for adapter, strength, _ in uses:
        more = matrix(adapter)
        up_bias = adapter.tensors.get("up_bias", torch.zeros(OUT)).double() * adapter.scale
        if "magnitude" in adapter.tensors:
            gain = adapter.tensors["magnitude"].double() / (weight + more).norm(dim=1)
            more = gain[:, None] * (weight + more) - weight
            up_bias = up_bias * gain
        new += strength * more
        new_bias += strength * (up_bias + adapter.tensors.get("diff_b", torch.zeros(OUT)))
    return x.double() @ new.t() + new_bias


def used(what: str, strength: float = 1.0, seed: int = 0, magnitude: bool = False) -> Use:
    adapter = made(what, seed, magnitude)
    weight, _ = weight_and_bias()
    return Use(adapter, strength, low_rank.dora_gain(adapter, weight) if magnitude else None)


def beside(uses: list[Use], x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    linear = layer(dtype)
    added = Beside(uses, dtype, linear.bias)
    with torch.inference_mode():
        return added.add(linear(x), x)


def from_exact(found: Tensor, uses: list[Use], x: Tensor) -> float:
    true = exact(uses, x)
    return ((found.double() - true).norm() / true.norm()).item()


def some_x(*shape: int) -> Tensor:
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "dora"])
@pytest.mark.parametrize("what", KINDS)
def test_every_kind_is_as_exact_beside_as_in_the_weight(what: str, magnitude: bool) -> None:
    x = some_x(2, 5)
    for strength in (1.0, -0.6, 2.5):
        uses = [used(what, strength, magnitude=magnitude)]
        assert from_exact(beside(uses, x), uses, x) < 2e-6
        # It would be seen: without the adapter the answer is another one.
        assert from_exact(layer()(x).detach(), uses, x) > 0.01


@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "dora"])
@pytest.mark.parametrize("what", KINDS)
def test_folded_is_the_same_as_beside(what: str, magnitude: bool) -> None:
    x = some_x(7)
    use = used(what, 0.8, magnitude=magnitude)
    weight, bias = weight_and_bias()
    before = weight.clone()
    folded = low_rank.fold(weight, use.adapter, use.strength)
    more = low_rank.added_bias(use)
    found = x @ folded.t() + bias + (0 if more is None else more)
    assert from_exact(found, [use], x) < 2e-6
    assert torch.equal(weight, before)


@settings(deadline=None, max_examples=40)
@given(
    names=st.lists(st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=1, max_size=4),
    strengths=st.lists(st.floats(-4, 4), min_size=4, max_size=4),
    shape=st.sampled_from([(), (1,), (3,), (2, 4), (2, 1, 3)]),
)
def test_any_stack_is_the_sum_of_its_parts(names, strengths, shape) -> None:
    uses = [
        used(what, strength, seed, magnitude)
        for seed, ((what, magnitude), strength) in enumerate(zip(names, strengths, strict=False))
    ]
    x = some_x(*shape)
    found = beside(uses, x)
    assert found.shape == (*shape, OUT)
    assert (found.double() - exact(uses, x)).abs().max() < 2e-4


def test_plain_pairs_become_one_along_the_rank_and_one_alone_is_not_copied() -> None:
    first, second = used("lora"), used("lora", 0.5, seed=1)
    alone = Beside([first], torch.float32)
    assert len(alone.forms) == 1
    held = {tensor.data_ptr() for tensor in alone.held.parameters()}
    assert held >= {first.adapter.tensors[each].data_ptr() for each in ("up", "down")}
    both = Beside([first, used("lokr"), second], torch.float32)
    forms = [form for form, _ in both.forms]
    assert [form.apply for form in forms] == [low_rank.pair, low_rank.kron]
    assert forms[0].tensors[0].shape == (8, IN)


def test_loha_takes_the_form_that_is_less_work() -> None:
    made = {what: Beside([used(what)], torch.float32) for what in ("loha", "wide loha")}
    applied = {what: each.forms[0][0].apply for what, each in made.items()}
    assert applied == {"loha": low_rank.pair, "wide loha": low_rank.dense}
    assert sum(p.numel() for p in made["wide loha"].held.parameters()) < OUT * IN


def test_what_is_moved_is_what_is_used() -> None:
    """Hosts put other tensors in the holder's place, in it or instead of it."""
    use, x = used("lora"), some_x(3)
    added = Beside([use], torch.float32, layer().bias)
    with torch.inference_mode():
        before = added.add(layer()(x), x)
        for name, held in list(added.held.named_parameters()):
            setattr(added.held, name, nn.Parameter(held * 2, requires_grad=False))
        assert not torch.allclose(added.add(layer()(x), x), before)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_half_precision_and_files_of_another_dtype(dtype: torch.dtype, bound: float) -> None:
    x = some_x(16)
    for what in KINDS[:-1]:
        uses = [used(what, magnitude=True)]
        narrow = beside(uses, x.to(dtype), dtype)
        assert narrow.dtype == dtype
        assert from_exact(narrow, uses, x) < bound
        # Prepared for one dtype and met by another: right, if slower.
        late = Beside(uses, torch.float16, layer().bias)
        with torch.inference_mode():
            assert from_exact(late.add(layer()(x), x), uses, x) < 0.002


def test_beside_an_fp8_base_the_change_is_whole() -> None:
    """The layer's own forward is left to it: here one that widens fp8 weights as hosts do."""

    class Narrow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    linear = Narrow(IN, OUT).requires_grad_(False)
    linear.weight.data = weight_and_bias()[0].to(torch.float8_e4m3fn)
    linear.to(torch.float8_e4m3fn)
    x = some_x(32)
    adapter = made("lora", scale=0.02)
    before = linear(x)
    with torch.inference_mode():
        after = Beside([Use(adapter, 1.0)], torch.float32).add(linear(x), x)
    true = x.double() @ matrix(adapter).t() + adapter.tensors["up_bias"].double() * adapter.scale
    assert ((after - before).double() - true).norm() / true.norm() < 1e-4
    folded = low_rank.fold(linear.weight, adapter, 1.0).to(torch.float8_e4m3fn).float()
    lost = (x @ (folded - linear.weight.float()).t()).double() - x.double() @ matrix(adapter).t()
    assert lost.norm() / true.norm() > 0.2, "what this is for"


def test_an_output_that_others_need_is_not_written_to() -> None:
    uses, x = [used("lora")], some_x(3)
    added = Beside(uses, torch.float32)
    linear = layer()
    plain = linear(x)
    assert plain.requires_grad
    kept = plain.detach().clone()
    grown = added.add(plain, x)
    assert torch.equal(plain.detach(), kept)
    grown.sum().backward()
    assert linear.bias.grad is not None
    with torch.inference_mode():
        row = kept.clone()
        assert added.add(row, x) is row
        row = kept.clone()
        assert added.add(row, x, shared=True) is not row
        assert torch.equal(row, kept)
        turned = kept.t().contiguous().t()
        assert torch.equal(added.add(turned, x), added.add(kept.clone(), x))
        assert torch.equal(turned, kept)
        frozen = kept.clone()
    with torch.no_grad():
        added.add(frozen, x)
        assert torch.equal(frozen, kept)


def test_a_magnitude_without_its_gain_is_refused() -> None:
    with pytest.raises(ValueError, match="magnitude"):
        Beside([Use(made("lora", magnitude=True), 1.0)], torch.float32)
    wrong = Adapter("lora", {**made("lora").tensors, "magnitude": torch.ones(3)})
    with pytest.raises(ValueError, match="expected 24 numbers, got 3"):
        low_rank.dora_gain(wrong, weight_and_bias()[0])


def test_an_unknown_kind_is_refused() -> None:
    odd = Adapter("oft", {"blocks": torch.ones(2)})
    with pytest.raises(ValueError, match="oft"):
        Beside([Use(odd, 1.0)], torch.float32)
    with pytest.raises(ValueError, match="oft"):
        low_rank.fold(weight_and_bias()[0], odd, 1.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([layer(), layer()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x) + self.blocks[1](x)


def parts(*whats: str) -> dict[str, Beside]:
    return {f"blocks.{i}": Beside([used(what)], torch.float32) for i, what in enumerate(whats)}


def untouched(model: Model) -> bool:
    return not any("forward" in block.__dict__ for block in model.blocks)


def test_a_model_is_itself_again_after_removal() -> None:
    model, x = Model(), some_x(3)
    names = list(model.state_dict())
    with torch.inference_mode():
        plain = model(x)
        injected = Injected(dict(model.named_modules()), parts("lora", "lokr"))
        changed = model(x)
        assert list(model.state_dict()) == names
        assert (changed - plain).abs().max() > 0.1
        assert injected.remove()
        assert torch.equal(model(x), plain)
        assert untouched(model)
        assert injected.remove(), "twice does no harm"


def test_an_unknown_layer_changes_nothing() -> None:
    model = Model()
    stack = {**parts("lora"), "blocks.7": parts("lora")["blocks.0"]}
    with pytest.raises(KeyError):
        Injected(dict(model.named_modules()), stack)
    assert untouched(model)


class Theirs:
    """How the host's own bypass wraps a layer, and puts back what it found."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.found = module, module.forward
        module.forward = lambda x: self.found(x) + 10

    def remove(self) -> None:
        self.module.forward = self.found


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("first_out", [True, False])
def test_wraps_of_others_over_and_under_ours(ours_first: bool, first_out: bool) -> None:
    model, x = Model(), some_x(3)
    with torch.inference_mode():
        plain = model(x)
        makers = [
            lambda: Injected(dict(model.named_modules()), parts("lora")),
            lambda: Theirs(model.blocks[0]),
        ]
        pair = [make() for make in (makers if ours_first else makers[::-1])]
        ours, theirs = pair if ours_first else pair[::-1]
        both = model(x)
        for each in (ours, theirs) if first_out else (theirs, ours):
            each.remove()
        ours.remove()
        assert torch.equal(model(x), plain)
        assert (both - plain - 10).abs().max() > 0.1
        assert not any(b.__dict__.get("forward") is w.forward for b, w in _ours(model, ours))


def _ours(model: Model, ours: Injected):
    return itertools.product(model.blocks, ours._wraps)


def test_a_compiled_model_sees_what_comes_and_goes() -> None:
    model, x = Model(), some_x(3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        plain = compiled(x)
        injected = Injected(dict(model.named_modules()), parts("lora"))
        assert torch.allclose(compiled(x), model(x))
        assert not torch.allclose(compiled(x), plain)
        injected.remove()
        assert torch.equal(compiled(x), plain)


def test_what_is_held_is_listed_as_by_any_module() -> None:
    held = low_rank.Held()
    tensors = [torch.ones(2, 3), torch.zeros(4)]
    for tensor in tensors:
        held.put(tensor)
    outer = nn.ModuleDict({"beside": held})
    usual = nn.ModuleDict({"beside": nn.ParameterList(tensors)})
    for keep_vars in (False, True):
        found = outer.state_dict(keep_vars=keep_vars)
        wanted = usual.state_dict(keep_vars=keep_vars)
        assert list(found) == ["beside.t0", "beside.t1"]
        for one, other in zip(found.values(), wanted.values(), strict=True):
            assert one.data_ptr() == other.data_ptr()
            assert not one.requires_grad
