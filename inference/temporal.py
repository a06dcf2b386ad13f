"""Owns frame index lists: which source frame stands at each place of a padded clip or batch. Pure Python.

`repeat_last` is the rule of the product and of the original script (spec pipeline A3). The mirror rules and batches of
the ComfyUI port (spec D2, D3) serve the parity command.
"""

from __future__ import annotations

FRAMES_PER_LATENT = 4


def repeat_last(num_frames: int, sequence_parallel: int = 1) -> list[int]:
    """Spec A3: indices of the padded clip, of length 1 or 4 * sequence_parallel * n + 1; the last frame repeats."""
    _check(num_frames)
    step = FRAMES_PER_LATENT * sequence_parallel
    if num_frames == 1:
        return [0]
    missing = -(num_frames - 1) % step
    return [*range(num_frames), *[num_frames - 1] * missing]


def mirror_after(num_frames: int, count: int) -> list[int]:
    """Spec D3: indices of the clip with `count` mirrored frames behind it; a clip too short ends on its frame 1."""
    _check(num_frames)
    return [*range(num_frames), *_mirrored(num_frames, count)]


def mirror_before(num_frames: int, count: int) -> list[int]:
    """Spec D2: indices of the clip with `count` mirrored frames in front of it (frame 0 is not repeated)."""
    _check(num_frames)
    if count < num_frames:
        return [*range(count, 0, -1), *range(num_frames)]
    last = num_frames - 1
    return [*[last] * (count - last), *range(last, 0, -1), *range(num_frames)]


def mirror_to_4n1(num_frames: int) -> list[int]:
    """Spec D3: indices of the batch mirrored up to the next length 4n + 1; a single frame stays one frame."""
    return mirror_after(num_frames, -(num_frames - 1) % FRAMES_PER_LATENT)


def batch_spans(num_frames: int, batch: int, overlap: int) -> list[tuple[int, int]]:
    """Spec D3: (start, stop) of each batch of the port. An overlap of a whole batch or more counts as none."""
    overlap = 0 if overlap >= batch else overlap
    spans: list[tuple[int, int]] = []
    for start in range(0, num_frames, batch - overlap):
        stop = min(start + batch, num_frames)
        if start > 0 and stop - start <= overlap:
            break
        spans.append((start, stop))
    return spans


def _mirrored(num_frames: int, count: int) -> list[int]:
    last = num_frames - 1
    if count < num_frames:
        return [*range(last - 1, last - 1 - count, -1)]
    return [*range(last, 0, -1), *[last] * (count - last)]


def _check(num_frames: int) -> None:
    if num_frames < 1:
        raise ValueError(f"a clip needs at least one frame, got {num_frames}")
