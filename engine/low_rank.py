"""LoRA and its relatives beside a layer: y = base(x) + strength · Δx, no base weight written.

The base layer's own forward runs untouched, whatever its weights are stored in; what an adapter
adds is computed in the output's dtype and written into the output. A scale is the factor that the
product takes anyway (``addmm``'s alpha), so that it costs no pass over memory and no rounding.

Each kind has its own exact form: a pair of factors; LoHa as one pair of rank r1·r2 where that is
less work than the whole matrix, else multiplied out for the moment; LoKr's Kronecker product never
multiplied out; DoRA as a gain of the base's output rows. Sources of the definitions: LoRA
arXiv:2106.09685, LoHa and LoKr arXiv:2309.14859, DoRA arXiv:2402.09353.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class Adapter(Protocol):
    """What is known of one layer's adapter, as weights_loader.lora reads it.

    kind: "lora" (tensors down (r,I), up (O,r), perhaps mid), "loha" (w1_a (O,r), w1_b (r,I), w2_a,
    w2_b, perhaps t1, t2), "lokr" (w1 or w1_a, w1_b; w2 or w2_a, w2_b, perhaps t2) or "diff"
    (diff (O,I), which may be missing); with any kind diff_b (O,), up_bias (O,) and magnitude (O,)
    for DoRA. scale: what the product is multiplied by; diff_b is not.
    """

    @property
    def kind(self) -> str: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def scale(self) -> float: ...


class Use(NamedTuple):
    """An adapter at a strength. gain: (O,) from ``dora_gain``, for an adapter with a magnitude."""

    adapter: Adapter
    strength: float
    gain: Tensor | None = None


class Held(nn.Module):
    """The tensors of all layers' adapters, flat: hosts walk through modules, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def put(self, tensor: Tensor) -> Slot:
        """Take a tensor in, as it is."""
        name = f"t{self.count}"
        self.count += 1
        self._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return Slot(self, name)

    def to(self, *args: Any, **kwargs: Any) -> Held:
        """As of every module, but at once where nothing is to be moved: hosts ask at each load, and
        a thousand tensors take longer to be left alone than a switch may."""
        parse = torch._C._nn._parse_to  # pyright: ignore[reportAttributeAccessIssue]
        device, dtype, *_ = parse(*args, **kwargs)
        held = (each for each in self._parameters.values() if each is not None)
        there = dtype is None and all(each.device == device for each in held)
        return self if there else super().to(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Hosts ask for it to count bytes; detaching what has no gradient is half of a switch.
        destination.update((prefix + name, each) for name, each in self._parameters.items())


class Slot(NamedTuple):
    """Where a tensor is held; whoever moves the holder to a device puts another in its place."""

    held: Held
    name: str

    def like(self, rows: Tensor) -> Tensor:
        """The tensor where the rows are and in their dtype: usually it is there already."""
        return getattr(self.held, self.name).to(device=rows.device, dtype=rows.dtype)


class Beside:
    """All that stands beside one layer; what it holds are the adapters' own tensors where those
    have ``dtype`` already.

    uses: at least one. base_bias: (O,), the layer's own bias, which DoRA does not scale. held: what
    holds the tensors; None: a holder of its own.
    Raises: ValueError for an adapter with a magnitude and no gain.
    """

    def __init__(
        self,
        uses: Sequence[Use],
        dtype: torch.dtype,
        base_bias: Tensor | None = None,
        held: Held | None = None,
    ) -> None:
        self.held = Held() if held is None else held
        forms: list[Form] = []
        gain: Tensor | None = None
        shift: Tensor | None = None
        for use in uses:
            if use.gain is None and "magnitude" in use.adapter.tensors:
                raise ValueError("an adapter with a magnitude (DoRA) needs the gain of its layer")
            form = _form(use, dtype)
            forms += [] if form is None else [form]
            more = added_bias(use)
            if more is not None:
                shift = more if shift is None else shift + more
            if use.gain is not None:
                extra = use.strength * (use.gain.float() - 1)
                gain = 1 + extra if gain is None else gain + extra
        if gain is not None and base_bias is not None:
            kept = (1 - gain) * base_bias.to(device=gain.device, dtype=torch.float32)
            shift = kept if shift is None else shift + kept
        self.forms = [
            (form, [self.held.put(tensor) for tensor in form.tensors]) for form in _joined(forms)
        ]
        self.gain = None if gain is None else self.held.put(gain.to(dtype))
        self.shift = None if shift is None else self.held.put(shift.to(dtype))

    def add(self, out: Tensor, x: Tensor, shared: bool = False) -> Tensor:
        """What the layer and its adapters say.

        out: (…,O) what the base said of x: (…,I). It is written to unless it is ``shared`` with
        others or autograd may need it. Returns: as ``out``.
        """
        if shared or not _may_write(out, x):
            out = out.clone(memory_format=torch.contiguous_format)
        rows = out.view(-1, out.shape[-1])
        x_rows = x.reshape(-1, x.shape[-1]).to(rows.dtype)
        if self.gain is not None:
            rows.mul_(self.gain.like(rows))
        if self.shift is not None:
            rows.add_(self.shift.like(rows))
        for form, slots in self.forms:
            form.add(rows, x_rows, [slot.like(rows) for slot in slots])
        return out


class Form(NamedTuple):
    """One product: rows (N,O) += alpha · Δ x_rows (N,I).

    add: (rows, x_rows, tensors, alpha) by one of the functions below. tensors: as it takes them.
    """

    apply: Callable[[Tensor, Tensor, Sequence[Tensor], float], None]
    tensors: Sequence[Tensor]
    alpha: float

    def add(self, rows: Tensor, x_rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """tensors: the form's own where the rows are and in their dtype."""
        self.apply(rows, x_rows, tensors, self.alpha)


def pair(rows: Tensor, x_rows: Tensor, tensors: Sequence[Tensor], alpha: float) -> None:
    """tensors: down (r,I), up (O,r)."""
    down, up = tensors
    rows.addmm_(functional.linear(x_rows, down), up.t(), alpha=alpha)


def dense(rows: Tensor, x_rows: Tensor, tensors: Sequence[Tensor], alpha: float) -> None:
    """tensors: Δ (O,I) whole, or LoHa's four factors, multiplied out for the moment."""
    whole = tensors[0]
    if len(tensors) == 4:
        whole = (tensors[0] @ tensors[1]).mul_(tensors[2] @ tensors[3])
    rows.addmm_(x_rows, whole.t(), alpha=alpha)


def kron(rows: Tensor, x_rows: Tensor, tensors: Sequence[Tensor], alpha: float) -> None:
    """tensors: w1 (a,b), and w2 (c,d) whole or as (c,r) and (r,d); O = ac and I = bd."""
    outer, *factors = tensors
    inner, each = _kron_inner(x_rows, outer, factors)
    rows.view(len(rows), len(outer), inner.shape[2]).baddbmm_(each, inner, alpha=alpha)


def gained_kron(rows: Tensor, x_rows: Tensor, tensors: Sequence[Tensor], alpha: float) -> None:
    """tensors: a gain (O,) of the product's rows, then as ``kron``."""
    gain, outer, *factors = tensors
    inner, each = _kron_inner(x_rows, outer, factors)
    rows.addcmul_(torch.bmm(each, inner).view_as(rows), gain, value=alpha)


def _kron_inner(x_rows: Tensor, outer: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N,b,c), x through w2, and (N,a,b), w1 for each row."""
    count, (a, b) = len(x_rows), outer.shape
    inner = x_rows.reshape(count, b, x_rows.shape[1] // b)
    for factor in reversed(factors):
        inner = functional.linear(inner, factor)
    return inner, outer.expand(count, a, b)


def delta(adapter: Adapter) -> Tensor | None:
    """The change of the weight as one matrix, scale in it: (O,I) fp32, or None if there is none."""
    tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    if adapter.kind == "lora":
        down, up = _pair(tensors)
        whole = up @ down
    elif adapter.kind == "loha":
        w1_a, w1_b, w2_a, w2_b = _hadamard(tensors)
        whole = (w1_a @ w1_b).mul_(w2_a @ w2_b)
    elif adapter.kind == "lokr":
        w1, w2 = _kronecker(tensors)
        whole = torch.kron(w1, w2[0] if len(w2) == 1 else w2[0] @ w2[1])
    elif adapter.kind == "diff":
        if "diff" not in tensors:
            return None
        whole = tensors["diff"].flatten(1)
    else:
        raise ValueError(f"an adapter of the kind {adapter.kind!r}, of which nothing is known")
    return whole * adapter.scale


def dora_gain(adapter: Adapter, weight: Tensor) -> Tensor:
    """What DoRA multiplies each row of W + Δ by: its magnitude over the row's length, (O,) fp32.

    weight: (O,I), the base's own, any float dtype. Computed where ``weight`` is.
    """
    changed = weight.to(torch.float32, copy=True)
    more = delta(_moved(adapter, weight.device))
    if more is not None:
        changed += more.reshape_as(changed)
    magnitude = adapter.tensors["magnitude"].to(weight.device, torch.float32).flatten()
    if len(magnitude) != len(changed):
        raise ValueError(f"magnitude: expected {len(changed)} numbers, got {len(magnitude)}")
    lengths = torch.linalg.vector_norm(changed, dim=1)
    return magnitude / lengths.clamp_min(torch.finfo(torch.float32).tiny)


def fold(weight: Tensor, adapter: Adapter, strength: float) -> Tensor:
    """The weight with an adapter in it, for those who do keep it there: (O,I) fp32.

    weight: (O,I), any float dtype; it is not changed.
    """
    wide = weight.to(torch.float32, copy=True)
    if "magnitude" in adapter.tensors:
        gain = dora_gain(adapter, weight)
        more = delta(_moved(adapter, weight.device))
        changed = wide if more is None else wide + more
        return wide.lerp(gain.unsqueeze(1) * changed, strength)
    more = delta(_moved(adapter, weight.device))
    return wide if more is None else wide.add_(more.reshape_as(wide), alpha=strength)


def added_bias(use: Use) -> Tensor | None:
    """What an adapter adds to every output, strength in it: (O,) fp32, or None."""
    adapter, strength, gain = use
    total: Tensor | None = None
    if "up_bias" in adapter.tensors:
        total = adapter.tensors["up_bias"].float() * (strength * adapter.scale)
        total = total if gain is None else total * gain.to(total.device)
    if "diff_b" in adapter.tensors:
        own = adapter.tensors["diff_b"].float() * strength
        total = own if total is None else total + own
    return total


class Injected:
    """Adapters put beside layers of a model, until ``remove``.

    layers: the model's layers by name. beside: names of layers -> what stands beside each. shared:
    layers whose output is kept by others, and so is not written to.
    Raises: KeyError for a name that the model does not have; nothing is changed then.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        beside: Mapping[str, Beside],
        shared: Sequence[str] = (),
    ) -> None:
        found = {name: layers[name] for name in beside}
        self._wraps = [_Wrap(found[name], beside[name], name in shared) for name in beside]

    def remove(self) -> bool:
        """Give the layers their own forward back. Returns: whether nothing is left on any.

        Where somebody has wrapped a layer since, ours is idle from now on; once theirs is gone,
        another call takes it off.
        """
        self._wraps = [wrap for wrap in self._wraps if not wrap.remove()]
        return not self._wraps


class _Wrap:
    """One layer's forward replaced on the instance. Not a forward hook: torch.compile overlooks
    one that comes after it has compiled."""

    def __init__(self, module: nn.Module, beside: Beside, shared: bool) -> None:
        self.module = module
        self.before = module.__dict__.get("forward")
        self.beside: Beside | None = beside
        usual = module.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = usual(x, *args, **kwargs)
            return out if self.beside is None else self.beside.add(out, x, shared)

        self.forward = forward
        module.__dict__["forward"] = forward

    def remove(self) -> bool:
        if self.beside is not None and self.module.__dict__.get("forward") is not self.forward:
            # Whoever is over it may hold it, or may have put the layer's own back already.
            self.beside = None
            return False
        self.beside = None
        if self.module.__dict__.get("forward") is self.forward:
            if self.before is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.before
        return True


def _form(use: Use, dtype: torch.dtype) -> Form | None:
    """The product of one adapter, its rows times DoRA's gain."""
    adapter, strength, gain = use
    tensors, alpha = adapter.tensors, strength * adapter.scale
    if adapter.kind == "lora":
        down, up = _pair(tensors)
        return Form(pair, [down.to(dtype), _gained(up, gain, dtype)], alpha)
    if adapter.kind == "loha":
        w1_a, w1_b, w2_a, w2_b = _hadamard(tensors)
        rank = w1_a.shape[1] * w2_a.shape[1]
        outer, inner = len(w1_a), w1_b.shape[1]
        if rank * (outer + inner) > outer * inner:
            first = _gained(w1_a, gain, dtype)
            return Form(dense, [first, *(t.to(dtype) for t in (w1_b, w2_a, w2_b))], alpha)
        up = w1_a.float().unsqueeze(2) * w2_a.float().unsqueeze(1)
        down = w1_b.float().unsqueeze(1) * w2_b.float().unsqueeze(0)
        up, down = up.reshape(outer, rank), down.reshape(rank, inner)
        return Form(pair, [down.to(dtype), _gained(up, gain, dtype)], alpha)
    if adapter.kind == "lokr":
        w1, w2 = _kronecker(tensors)
        factors = [t.to(dtype) for t in (w1, *w2)]
        if gain is None:
            return Form(kron, factors, alpha)
        return Form(gained_kron, [gain.to(device=w1.device, dtype=dtype), *factors], alpha)
    if adapter.kind == "diff":
        if "diff" not in tensors:
            return None
        return Form(dense, [_gained(tensors["diff"].flatten(1), gain, dtype)], alpha)
    raise ValueError(f"an adapter of the kind {adapter.kind!r}, of which nothing is known")


def _joined(forms: Sequence[Form]) -> list[Form]:
    """All pairs as one, side by side along the rank: the output is read and written once."""
    pairs = [form for form in forms if form.apply is pair]
    if len(pairs) < 2:
        return list(forms)
    down = torch.cat([form.tensors[0] for form in pairs])
    ups = [(form.tensors[1].float() * form.alpha).to(down.dtype) for form in pairs]
    rest = [form for form in forms if form.apply is not pair]
    return [Form(pair, [down, torch.cat(ups, dim=1)], 1.0), *rest]


def _pair(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """down (r,I) and up (O,r); what stands between them, goes into down."""
    down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
    if "mid" in tensors:
        mid = tensors["mid"]
        down = (mid.reshape(mid.shape[:2]).float() @ down.float()).to(down.dtype)
    return down, up


def _hadamard(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w1_a (O,r1), w1_b (r1,I), w2_a (O,r2), w2_b (r2,I), their cores multiplied in."""
    w1 = _cored(tensors["w1_a"], tensors["w1_b"], tensors.get("t1"))
    w2 = _cored(tensors["w2_a"], tensors["w2_b"], tensors.get("t2"))
    return (*w1, *w2)


def _kronecker(tensors: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """w1 (a,b), and w2 as (c,d) or as its two factors."""
    w1 = tensors.get("w1")
    if w1 is None:
        first, second = tensors["w1_a"], tensors["w1_b"]
        w1 = (first.float() @ second.float()).to(first.dtype)
    if "w2" in tensors:
        return w1.flatten(1), [tensors["w2"].flatten(1)]
    return w1.flatten(1), list(_cored(tensors["w2_a"], tensors["w2_b"], tensors.get("t2")))


def _cored(first: Tensor, second: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """(O,r) and (r,I). With a Tucker core the first factor lies the other way round."""
    if core is None:
        return first.flatten(1), second.flatten(1)
    middle = core.reshape(core.shape[:2]).float() @ second.flatten(1).float()
    return first.flatten(1).t(), middle.to(second.dtype)


def _gained(rows: Tensor, gain: Tensor | None, dtype: torch.dtype) -> Tensor:
    if gain is None:
        return rows.to(dtype)
    return (rows.float() * gain.to(rows.device).unsqueeze(1)).to(dtype)


def _moved(adapter: Adapter, device: torch.device) -> Adapter:
    moved = {name: tensor.to(device) for name, tensor in adapter.tensors.items()}
    return _Moved(adapter.kind, moved, adapter.scale)


class _Moved(NamedTuple):
    kind: str
    tensors: Mapping[str, Tensor]
    scale: float


def _may_write(out: Tensor, x: Tensor) -> bool:
    if torch.is_grad_enabled() and (out.requires_grad or x.requires_grad):
        return False
    if out is x or not out.is_contiguous():
        return False
    # The compiler, which knows no such tensors, cannot ask.
    if torch.compiler.is_compiling():
        return True
    return torch.is_inference_mode_enabled() or not out.is_inference()
