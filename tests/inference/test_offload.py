"""Moving weights: all is where it was afterwards, whatever happened. Without a card, `meta` is the other device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference.offload import offloaded, offloaded_bytes, onload

META = torch.device("meta")


class SomeError(Exception):
    pass


@pytest.fixture
def network() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    return network.requires_grad_(False).eval()


def places(network: nn.Module) -> list[tuple[str, int]]:
    tensors = [*network.parameters(), *network.buffers()]
    return [(tensor.device.type, 0 if tensor.is_meta else tensor.data_ptr()) for tensor in tensors]


def test_weights_and_buffers_are_on_the_device_inside_and_in_the_same_memory_after(network: nn.Module) -> None:
    before, values = places(network), [tensor.clone() for tensor in network.state_dict().values()]

    with onload(network, META):
        assert {device for device, _ in places(network)} == {"meta"}

    assert places(network) == before
    assert all(torch.equal(a, b) for a, b in zip(values, network.state_dict().values(), strict=True))


def test_weights_share_blocks_of_host_memory() -> None:
    network = nn.Sequential(nn.Linear(30, 30), nn.BatchNorm1d(30), nn.Linear(30, 7).double()).requires_grad_(False)
    values = [tensor.clone() for tensor in network.state_dict().values()]
    with offloaded(network):
        tensors = [*network.parameters(), *network.buffers()]
        blocks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        moved = [tensor.clone() for tensor in network.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(values, moved, strict=True))
    assert sum(blocks.values()) == offloaded_bytes(network) == 2**30
    assert len(blocks) == 1


def test_devices_are_as_they_were_after_an_error(network: nn.Module) -> None:
    before = places(network)

    with pytest.raises(SomeError), onload(network, META):
        raise SomeError
    assert places(network) == before

    with pytest.raises(SomeError), offloaded(network):
        raise SomeError
    assert {device for device, _ in places(network)} == {"cpu"}


def test_an_onload_that_fails_half_way_leaves_nothing_moved(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, moves, to = places(network), iter([True, True, False]), torch.Tensor.to

    def fail_third(tensor: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        if not next(moves):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(tensor, *args, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch.Tensor, "to", fail_third)
    with pytest.raises(torch.OutOfMemoryError), onload(network, META):
        pytest.fail("nothing runs with half of the weights")
    assert places(network) == before


def test_what_is_offloaded_computes_the_same_inside_and_after(network: nn.Module) -> None:
    x = torch.ones(2, 3)
    before = network(x)

    with offloaded(network), torch.inference_mode(), onload(network, torch.device("cpu")):
        inside = network(x).clone()

    assert torch.equal(inside, before)
    assert torch.equal(network(x), before)
    assert not any(tensor.is_inference() for tensor in network.parameters())
