"""The models that this program knows: files, sizes, hashes, and the constants that belong to each.

Values only, and no torch, so that the web process can list models. A model has three parts: the transformer, the
video VAE and the text embedding. Each part names the files that can serve, best first: the released one, what
`inference.convert` makes of it, then the half-precision mirror. The VAE and text embedding are one file for every
released model, so they are stored once.

The released repositories are known by the first digits of their commits only, which the hub does not accept as a
revision. So `revision` is the branch, and the SHA-256 decides whether the file is the one that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from inference.errors import SettingsError

AUTO_MODEL = "auto"
"""The value of `engine.model` that lets the program choose; see `default_model`."""

RELEASED_LATENT_SCALE = 0.9152
"""Latents of the released VAE are multiplied by this before the transformer sees them."""


class Part(StrEnum):
    """The files of a model, by role."""

    DIT = "dit"
    VAE = "vae"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of weights.

    repository, revision: where the hub has it; None for a file that only exists locally (converted or embedded).
    num_bytes, sha256: None where they are not known; an unknown hash means that keys and shapes alone are checked.
    superseded: SHA-256 of earlier uploads under the same name, which hold other weights.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    num_bytes: int | None = None
    sha256: str | None = None
    superseded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the catalogue.

    files: for each part the files that can serve, best first; the first one with a repository is downloaded.
        A model without a text file carries its embedding under the key `text_embedding` of the transformer's file.
    num_parameters: of the transformer.
    latent_scale: VAE latents times this are what the transformer was trained on.
    noise_scale: standard deviation of the noise that the transformer starts from; 0 for a model trained without noise.
    needs_float32: half precision would lose what this model computes, so that `auto` never chooses it.
    default_fidelity: strength of back-projection (0..1) when the settings leave it to the model.
    min_cuda_bytes: device memory below which `auto` does not choose the model; None if it is not chosen on CUDA. It is
        what the planner (`inference.budget`) needs for 1280x720, beside what CUDA takes for itself: for the smallest
        model by whatever plan, for a larger one without moving its weights. min_cuda_bytes_fp8: the same in fp8.
    """

    name: str
    title: str
    num_parameters: int
    files: dict[Part, tuple[WeightFile, ...]]
    latent_scale: float
    default_fidelity: float
    noise_scale: float = 1.0
    needs_float32: bool = False
    min_cuda_bytes: int | None = None
    min_cuda_bytes_fp8: int | None = None

    @property
    def is_embedded(self) -> bool:
        """True if the weights are part of this program: nothing is ever downloaded."""
        return all(file.repository is None for files in self.files.values() for file in files)


def converted_name(name: str, precision: str) -> str:
    """Name of the file that `inference.convert` makes of `name`; a dot, since mirrors use an underscore."""
    return f"{name.rsplit('.', 1)[0]}.{precision}.safetensors"


def _with_converted(released: WeightFile, *mirrors: WeightFile) -> tuple[WeightFile, ...]:
    converted = [WeightFile(name=converted_name(released.name, precision)) for precision in ("bf16", "fp16")]
    return (*converted, released, *mirrors)


_3B = "ByteDance-Seed/SeedVR2-3B"  # commit 37255ff..., since 2025-06-22
_7B = "ByteDance-Seed/SeedVR2-7B"  # commit eb0c428...
_MIRROR = "numz/SeedVR2_comfyUI"
_MAIN = "main"

_VAE = _with_converted(
    WeightFile(
        name="ema_vae.pth",
        repository=_3B,
        revision=_MAIN,
        num_bytes=1_002_691_902,
        sha256="c7df8a67e68b7f9aca3d5d2153d2ce8ab4373687741a0f9ce87cb356ace51cac",
    ),
    # The same bytes in the 7B repository: found in the cache of people who fetched that one.
    WeightFile(
        name="ema_vae.pth",
        repository=_7B,
        revision=_MAIN,
        num_bytes=1_002_691_902,
        sha256="c7df8a67e68b7f9aca3d5d2153d2ce8ab4373687741a0f9ce87cb356ace51cac",
    ),
    WeightFile(
        name="ema_vae_fp16.safetensors",
        repository=_MIRROR,
        revision=_MAIN,
        sha256="20678548f420d98d26f11442d3528f8b8c94e57ee046ef93dbb7633da8612ca1",
    ),
)

_TEXT = tuple(
    WeightFile(
        name="pos_emb.pt",
        repository=repository,
        revision=_MAIN,
        num_bytes=595_100,
        sha256="fa07a14844314772266b66c3b95deb0027696d8fe7065721263db5176f45d799",
    )
    for repository in (_3B, _7B)
)

NANO = ModelEntry(
    name="nano",
    title="Nano (embedded, for CPU and first tries)",
    num_parameters=6_809_492,
    files={
        Part.DIT: (WeightFile(name="nano_dit.safetensors"),),
        Part.VAE: (WeightFile(name="nano_vae.safetensors"),),
    },
    latent_scale=1.0,
    default_fidelity=1.0,
    noise_scale=0.0,
    needs_float32=True,
)

SEEDVR2_3B = ModelEntry(
    name="seedvr2-3b",
    title="SeedVR2 3B",
    num_parameters=3_391_476_448,
    files={
        Part.DIT: _with_converted(
            WeightFile(
                name="seedvr2_ema_3b.pth",
                repository=_3B,
                revision=_MAIN,
                num_bytes=13_566_090_228,
                sha256="6bcc5ac59447e97b100477480aebb01be2ec724c8340bb83faae21f64848604b",
                superseded=("91627bba45175e1f5913378bc16151dc9c28c78fd608913546238ac13041d97d",),
            ),
            WeightFile(
                name="seedvr2_ema_3b_fp16.safetensors",
                repository=_MIRROR,
                revision=_MAIN,
                num_bytes=6_783_018_808,
                sha256="2fd0e03a3dad24e07086750360727ca437de4ecd456f769856e960ae93e2b304",
            ),
        ),
        Part.VAE: _VAE,
        Part.TEXT: _TEXT,
    },
    latent_scale=RELEASED_LATENT_SCALE,
    default_fidelity=0.0,
    min_cuda_bytes=11 * 10**9,  # a "12 GB" card reports 11.7 to 12.6e9
    min_cuda_bytes_fp8=7 * 10**9,
)

SEEDVR2_7B = ModelEntry(
    name="seedvr2-7b",
    title="SeedVR2 7B",
    num_parameters=8_239_608_232,
    files={
        Part.DIT: _with_converted(
            WeightFile(
                name="seedvr2_ema_7b.pth",
                repository=_7B,
                revision=_MAIN,
                num_bytes=32_958_774_606,
                sha256="e1b2ae25505607e61f2a7dc7967ba778aaf3e3626d9969ce6e24c52d9ddebfcd",
            ),
            WeightFile(
                name="seedvr2_ema_7b_fp16.safetensors",
                repository=_MIRROR,
                revision=_MAIN,
                num_bytes=16_479_334_424,
                sha256="7b8241aa957606ab6cfb66edabc96d43234f9819c5392b44d2492d9f0b0bbe4a",
            ),
        ),
        Part.VAE: _VAE,
        Part.TEXT: _TEXT,
    },
    latent_scale=RELEASED_LATENT_SCALE,
    default_fidelity=0.0,
    min_cuda_bytes=31 * 10**9,
    min_cuda_bytes_fp8=22 * 10**9,
)

SEEDVR2_7B_SHARP = ModelEntry(
    name="seedvr2-7b-sharp",
    title="SeedVR2 7B Sharp",
    num_parameters=8_239_608_232,
    files={
        Part.DIT: _with_converted(
            WeightFile(
                name="seedvr2_ema_7b_sharp.pth",
                repository=_7B,
                revision=_MAIN,
                num_bytes=32_958_774_606,
                sha256="ced5706c976d5879efcab9e108349d67abcbd8a9b36a1f48bf0f19c24164a264",
            ),
            WeightFile(
                name="seedvr2_ema_7b_sharp_fp16.safetensors",
                repository=_MIRROR,
                revision=_MAIN,
                sha256="20a93e01ff24beaeebc5de4e4e5be924359606c356c9c51509fba245bd2d77dd",
            ),
        ),
        Part.VAE: _VAE,
        Part.TEXT: _TEXT,
    },
    latent_scale=RELEASED_LATENT_SCALE,
    default_fidelity=0.0,
)

CATALOGUE: dict[str, ModelEntry] = {entry.name: entry for entry in (NANO, SEEDVR2_3B, SEEDVR2_7B, SEEDVR2_7B_SHARP)}


def find_model(name: str) -> ModelEntry:
    """The entry called `name`. Raises SettingsError that lists the names there are."""
    if name not in CATALOGUE:
        raise SettingsError(f"There is no model {name!r}; set engine.model to one of {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


def default_model(cuda_memory_bytes: int | None, *, fp8: bool = False) -> str:
    """What `engine.model=auto` means: `nano` without CUDA, else the largest model that fits the card.

    cuda_memory_bytes: total memory of the card, None if there is no usable CUDA device. fp8: of `engine.precision`.
    """

    def fits(entry: ModelEntry) -> bool:
        least = entry.min_cuda_bytes_fp8 if fp8 else entry.min_cuda_bytes
        return cuda_memory_bytes is not None and least is not None and least <= cuda_memory_bytes

    return max(filter(fits, CATALOGUE.values()), key=lambda entry: entry.num_parameters, default=NANO).name
