"""Products in 8 bits: rows and their scales, the layers that are quantised, how far the result is off."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inference.offload import offloaded, onload
from models.dit import DiT, DiTConfig
from models.fp8 import Fp8Linear, fp8_support
from models.fp8_ops import E4M3, LARGEST, Fp8Rows, product, quantize_joined, quantize_rows
from models.presets import NANO_DIT, SEEDVR2_3B, SEEDVR2_7B
from tests.models.test_dit import SIZES, TINY_3B
from tests.models.test_dit import _inputs as inputs_for

CPU = torch.device("cpu")
SMALL = {"width": 128, "text_width": 32, "num_heads": 2, "head_dim": 64, "num_layers": 4}
SMALL_3B = replace(SEEDVR2_3B, **SMALL, rope_dim=64, num_separate_layers=2)
SMALL_7B = replace(SEEDVR2_7B, **SMALL, num_separate_layers=4)
SMALL_NANO = replace(NANO_DIT, **SMALL)
CONFIGS = pytest.mark.parametrize("config", [SMALL_3B, SMALL_7B, SMALL_NANO], ids=["3b", "7b", "nano"])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(9, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 9)[:, None]


def make_dit(config: DiTConfig) -> DiT:
    """Random weights that keep activations at about their size."""
    torch.manual_seed(0)
    dit = DiT(config).requires_grad_(False)
    for parameter in dit.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dit


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def test_each_row_uses_the_whole_range_and_keeps_three_bits(x: Tensor) -> None:
    rows = quantize_rows(x)

    assert rows.values.dtype is E4M3
    assert rows.values.float().abs().amax(dim=1).tolist() == [LARGEST] * 9
    large = x.abs() > x.abs().amax(dim=1, keepdim=True) * 2**-14  # below are the subnormal numbers
    assert ((rows.dequantize() - x).abs()[large] <= x.abs()[large] * 2**-4).all()


def test_rows_of_zeros_stay_zeros() -> None:
    assert torch.equal(quantize_rows(torch.zeros(2, 16)).dequantize(), torch.zeros(2, 16))


def test_chosen_rows_are_those_of_the_whole(x: Tensor) -> None:
    chosen, whole = torch.tensor([5, 0, 5]), quantize_rows(x).dequantize()

    assert torch.equal(quantize_rows(x, chosen).dequantize(), whole[chosen])
    assert torch.equal(quantize_joined(x, chosen, x[2:4]).dequantize(), torch.cat([whole[chosen], whole[2:4]]))


def test_a_product_is_that_of_the_rounded_rows(x: Tensor) -> None:
    weight, bias = torch.randn(32, 48), torch.randn(32)
    left, right = quantize_rows(x), quantize_rows(weight)

    found = product(left, right, bias, torch.float32)

    torch.testing.assert_close(found, left.dequantize() @ right.dequantize().t() + bias, rtol=1e-4, atol=1e-4)


def test_a_layer_takes_tokens_quantised_or_not(x: Tensor) -> None:
    layer = Fp8Linear(nn.Linear(48, 32).bfloat16())

    result = layer(x.bfloat16())

    assert result.dtype is torch.bfloat16
    assert torch.equal(layer(quantize_rows(x.bfloat16())), result)


@pytest.mark.parametrize("config", [SEEDVR2_3B, SEEDVR2_7B, NANO_DIT], ids=["3b", "7b", "nano"])
def test_the_large_layers_of_every_model_are_quantised_and_no_others(config: DiTConfig) -> None:
    with torch.device("meta"):
        dit = DiT(config)
    names = dit.use_fp8()
    others = {name for name, layer in dit.named_modules() if isinstance(layer, nn.Linear)}
    weights = {name: parameter.numel() for name, parameter in dit.named_parameters()}
    in_fp8 = sum(weights[f"{name}.weight"] for name in names)

    assert dit.is_fp8
    assert {name.split(".")[2] for name in names} == {"attn", "mlp"}
    assert {name.split(".")[0] for name in others} == {"vid_in", "txt_in", "emb_in", "vid_out"}
    assert in_fp8 > (0.6 if config is NANO_DIT else 0.97) * sum(weights.values())


def test_a_network_whose_layers_are_too_narrow_is_refused_and_stays_as_it_was() -> None:
    dit = DiT(TINY_3B)

    with pytest.raises(ValueError, match="multiples of 16"):
        dit.use_fp8()
    assert not dit.is_fp8
    assert not any(isinstance(layer, Fp8Linear) for layer in dit.modules())


@CONFIGS
@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES], ids=["one", "packed"])
@torch.no_grad()
def test_the_velocity_is_off_by_what_three_bits_cost(config: DiTConfig, sizes: list[tuple[int, int, int]]) -> None:
    dit = make_dit(config)
    inputs = inputs_for(config, sizes)
    exact = dit(*inputs)
    dit.use_fp8()

    assert 0.01 < distance(dit(*inputs), exact) < 0.15


@CONFIGS
@torch.no_grad()
def test_steps_that_quantise_what_they_make_change_nothing(config: DiTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dit = make_dit(config)
    dit.use_fp8()
    inputs = inputs_for(config, SIZES[:1])
    found = dit(*inputs)
    forward = Fp8Linear.forward

    def through_float32(layer: Fp8Linear, x: Tensor | Fp8Rows) -> Tensor:
        return forward(layer, x.dequantize() if isinstance(x, Fp8Rows) else x)

    monkeypatch.setattr(Fp8Linear, "forward", through_float32)

    assert distance(dit(*inputs), found) < 1e-3  # rows that were quantised before come out as they went in


@torch.no_grad()
def test_weights_in_8_bits_can_wait_on_the_host() -> None:
    dit = make_dit(SMALL_3B).bfloat16()
    dit.use_fp8()
    inputs = inputs_for(SMALL_3B, SIZES[:1])
    before = dit(*inputs)

    with offloaded(dit), onload(dit, CPU):
        inside = dit(*inputs)
    assert torch.equal(inside, before)
    with onload(dit, torch.device("meta")):
        assert {parameter.device.type for parameter in dit.parameters()} == {"meta"}
    assert torch.equal(dit(*inputs), before)


@torch.no_grad()
def test_a_saved_state_of_a_quantised_network_loads_into_another() -> None:
    dit = make_dit(SMALL_7B)
    dit.use_fp8()
    with torch.device("meta"):
        other = DiT(SMALL_7B)
        other.use_fp8()
    other.load_state_dict(copy.deepcopy(dit.state_dict()), strict=True, assign=True)

    inputs = inputs_for(SMALL_7B, SIZES[:1])
    assert torch.equal(other(*inputs), dit(*inputs))


@pytest.mark.parametrize(
    ("capability", "product_works", "reason"),
    [((8, 0), True, "capability 8.0"), ((8, 9), False, "cannot do it here: no kernel"), ((9, 0), True, "")],
)
def test_a_card_is_judged_by_its_capability_and_by_a_product(
    capability: tuple[int, int], product_works: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(*arguments: object) -> Tensor:
        if not product_works:
            raise RuntimeError("no kernel\nand more")
        return product(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *to: self.bfloat16())
    monkeypatch.setattr("models.fp8.product", multiply)

    support = fp8_support.__wrapped__(torch.device("cuda", 0))

    assert support.works == (reason == "")
    assert reason in support.reason


def test_a_cpu_is_no_card() -> None:
    assert not fp8_support(CPU).works
