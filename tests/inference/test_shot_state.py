"""The state of a shot: a file brings back every bit of it, and the rest of the shot comes out the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import shot_state
from inference.budget import Budget
from inference.checkpoint import Models
from inference.meter import Meter
from inference.settings import ColorFix
from inference.shot import ShotPlan, ShotStream
from inference.shot_state import ShotState, StateFileError, load_state, save_state
from inference.sizes import Size
from inference.tracker import Tracker
from models import gpu_conv
from models.gpu import FastVAE

CPU = torch.device("cpu")
PLAN = ShotPlan(
    target=Size(28, 20),
    padded=Size(32, 32),
    budget=Budget(encode_frames=4, decode_latents=2, window_latents=5),
    overlap=1,
    seed=1,
    color_fix=ColorFix.BALANCED,
    fidelity=0.5,
)
Frames = list[NDArray[np.uint8]]


@pytest.fixture
def make_stream(tiny_models: Models) -> Callable[..., ShotStream]:
    def make(plan: ShotPlan = PLAN, state: ShotState | None = None, held: Frames | None = None) -> ShotStream:
        return ShotStream(tiny_models, plan, Tracker(Meter(CPU)), 40, state, held or [])

    return make


@pytest.mark.parametrize(("overlap", "turn"), [(0, 1), (1, 1), (2, 1), (1, 6), (1, 99)])
def test_a_shot_goes_on_from_a_file_after_any_slice_with_the_same_bits(
    make_stream: Callable[..., ShotStream],
    moving_frames: Callable[[int], Frames],
    tmp_path: Path,
    overlap: int,
    turn: int,
) -> None:
    frames, plan = moving_frames(38), replace(PLAN, overlap=overlap, budget=replace(PLAN.budget, turn_latents=turn))
    whole = list(make_stream(replace(plan, budget=PLAN.budget)).slices(frames))

    for number in range(1, len(whole)):
        first = make_stream(plan)
        begun = list(islice(first.slices(frames), number))
        save_state(first.state, tmp_path / "state")
        state = load_state(tmp_path / "state", CPU)
        rest = make_stream(plan, state, frames[state.given : state.taken]).slices(frames[state.taken :])

        assert all(np.array_equal(a, b) for a, b in zip(whole, [*begun, *rest], strict=True))


@pytest.mark.parametrize("is_card", [False, True])
def test_a_shot_goes_on_without_histories_with_the_same_bits(
    is_card: bool,
    tiny_models: Models,
    make_stream: Callable[..., ShotStream],
    moving_frames: Callable[[int], Frames],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Soon after its start, and when the VAE has forgotten how it began; what is kept for it does not grow."""
    monkeypatch.setattr(shot_state, "LARGE_HISTORIES_BYTES", 0)
    monkeypatch.setattr(gpu_conv, "PAIRED_CHANNELS", 1)
    vae = tiny_models.vae  # the plain form and that of cards have the shortest past
    monkeypatch.setattr(vae, "_fast", FastVAE(vae.encoder, vae.decoder) if is_card else None)
    past = vae.decoder_past
    frames = moving_frames(4 * past + 32)
    plan = replace(PLAN, budget=replace(PLAN.budget, max_frames=4))
    warmed_up: list[Tracker] = []
    monkeypatch.setattr(Tracker, "warmed_up", lambda tracker: warmed_up.append(tracker))
    stream, whole, kept = make_stream(plan), [], []
    for restored in stream.slices(frames):
        whole.append(restored)
        kept.append(sum(piece.shape[2] for piece in stream.state.recent))
    assert past + 2 < max(kept) <= past + 4  # slices of two latents, of which the first does not count

    for number in (2, len(whole) - 2, len(whole) - 1):
        first = make_stream(plan)
        begun = list(islice(first.slices(frames), number))
        save_state(first.state, tmp_path / "state")
        assert (tmp_path / "state").stat().st_size < 2 * first.state.num_bytes + 20_000
        state = load_state(tmp_path / "state", CPU)
        assert state.is_cold
        count = max(first.num_warm_up, state.taken - state.given)
        latest = frames[state.taken - count : state.taken]
        warmed_up.clear()
        rest = list(make_stream(plan, state, latest).slices(frames[state.taken :]))

        assert all(np.array_equal(a, b) for a, b in zip(whole, [*begun, *rest], strict=True))
        assert len(warmed_up) == 1  # time that says nothing of the rest


def test_in_one_turn_each_a_state_is_over_before_the_next_begins(
    make_stream: Callable[..., ShotStream], moving_frames: Callable[[int], Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing has to be moved, and a transformer that is moved is so once."""
    turns: list[int] = []

    @contextmanager
    def count(*_: object) -> Iterator[None]:
        turns.append(stream.state.planned)
        yield

    monkeypatch.setattr("inference.shot.onload", count)
    stream = make_stream(replace(PLAN, budget=replace(PLAN.budget, turn_latents=10)))
    frames = moving_frames(36)  # 10 latents, which are all that one turn takes
    for _ in stream.slices(frames):
        assert stream.state.encoder is None
        assert (stream.state.taken, stream.state.planned) == (36, 10)
    assert turns == [0]

    turns.clear()
    stream = make_stream(replace(PLAN, budget=replace(PLAN.budget, turn_latents=6)))
    most = max(stream.state.taken - stream.state.given for _ in stream.slices(frames))
    assert turns == [0, 5]  # windows of 5 with 1 shared: one after 6 latents, two after all 10
    assert most < 36


def test_an_image_is_the_same_without_a_state(
    tiny_models: Models,
    make_stream: Callable[..., ShotStream],
    moving_frames: Callable[[int], Frames],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae = tiny_models.vae
    monkeypatch.setattr(vae, "_fast", FastVAE(vae.encoder, vae.decoder))
    plans = [replace(PLAN, budget=replace(PLAN.budget, is_image=is_image)) for is_image in (False, True)]
    streams = [make_stream(plan) for plan in plans]
    (video,), (image,) = (list(stream.slices(moving_frames(1))) for stream in streams)

    assert np.array_equal(video, image)
    kept = [len(stream.state.decoder.histories) for stream in streams if stream.state.decoder]
    assert kept[0] > 10
    assert kept[1] == 0


def tensors(state: ShotState) -> list[Tensor]:
    streams = [history for stream in (state.encoder, state.decoder) if stream for history in stream.histories]
    return [*streams, *state.latents, *state.settled, *([] if state.held is None else [state.held])]


def test_a_file_keeps_numbers_and_memory_layout(
    make_stream: Callable[..., ShotStream], moving_frames: Callable[[int], Frames], tmp_path: Path
) -> None:
    stream = make_stream()
    next(stream.slices(moving_frames(38)))

    save_state(stream.state, tmp_path / "state")
    again = load_state(tmp_path / "state", CPU)

    pairs = list(zip(tensors(stream.state), tensors(again), strict=True))
    assert len(pairs) > 10
    assert all(torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype for a, b in pairs)
    for name in ("taken", "given", "has_ended", "first_latent", "planned", "num_bytes"):
        assert getattr(again, name) == getattr(stream.state, name)
    assert again.trust == stream.state.trust
    assert again.trust.limit > 0


def test_a_state_keeps_no_more_memory_alive_than_it_says(
    make_stream: Callable[..., ShotStream], moving_frames: Callable[[int], Frames]
) -> None:
    stream = make_stream()
    for _ in islice(stream.slices(moving_frames(60)), 5):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(stream.state)}
        assert sum(storages.values()) <= stream.state.num_bytes


def test_a_shot_is_over_exactly_after_its_last_slice(
    make_stream: Callable[..., ShotStream], moving_frames: Callable[[int], Frames]
) -> None:
    for count in (1, 5, 17, 18, 26):
        stream = make_stream()
        over = [stream.state.is_over for _ in stream.slices(moving_frames(count))]
        assert over == [False] * (len(over) - 1) + [True]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "missing", "other"])
def test_a_damaged_file_is_refused(
    make_stream: Callable[..., ShotStream], moving_frames: Callable[[int], Frames], tmp_path: Path, damage: str
) -> None:
    stream, path = make_stream(), tmp_path / "state"
    next(stream.slices(moving_frames(20)))
    save_state(stream.state, path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        torch.save({"format": 99}, path)
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": b"PK" + content[99:]}[damage])

    with pytest.raises(StateFileError):
        load_state(path, CPU)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "encoder": Path("x")}, tmp_path / "state")

    with pytest.raises(StateFileError):
        load_state(tmp_path / "state", CPU)


def test_a_job_can_stop_within_every_convolution_of_a_slice(
    tiny_models: Models, moving_frames: Callable[[int], Frames]
) -> None:
    """Between two looks at the cancellation lies at most one convolution of a few frames, however large they are."""
    looks, parts = 0, {"encode": 0, "decode": 0}

    class Counting(Tracker):
        def check(self) -> None:
            nonlocal looks
            looks += 1

    stream = ShotStream(tiny_models, PLAN, Counting(Meter(CPU)))
    for name in parts:
        network = getattr(tiny_models.vae._fast, f"_{name}r")

        def counted(x: Tensor, frames: object, name: str = name, network: Callable[..., Tensor] = network) -> Tensor:
            before = looks
            try:
                return network(x, frames)
            finally:
                parts[name] = looks - before

        setattr(tiny_models.vae._fast, f"_{name}r", counted)
    list(islice(stream.slices(moving_frames(20)), 2))

    num_convs = {
        name: sum(m.kernel_size[0] > 1 for m in getattr(tiny_models.vae, f"{name}r").modules() if hasattr(m, "_extend"))
        for name in parts
    }
    assert parts["encode"] >= num_convs["encode"] > 10
    assert parts["decode"] >= num_convs["decode"] > 10
