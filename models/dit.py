"""The diffusion transformer: one class for 3B, 7B and nano, written so that `DiT.forward` reads like its diagram.

Owns the configuration, the blocks and the parameter names, which equal those of the released checkpoints. A batch is
packed: all videos form one list of L tokens and all texts one list of M tokens, and nothing crosses videos.
Where weights are shared, video and text travel as one tensor; a tuple of one or two such `parts` is the state between
blocks. Source of the formulas: specification of the transformer. Legend: B batch, L packed video tokens, M packed text
tokens, C channels, N heads, D head dim.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import fp8_ops
from models.attention import Attend, attention
from models.fp8 import Fp8Linear, quantize_linears
from models.fp8_ops import Fp8Rows
from models.norms import ATTENTION, MLP, BlockModulation, OutputModulation, RMSNorm
from models.packing import PATCH, PackedLayout, WindowLayout, build_layout, patchify, unpatchify
from models.rope import Rope, RopeBuffer, RopeSpec
from models.token_ops import ProjectedTokens, rms_norm, silu_mul, window_qkv
from models.windows import Size3

__all__ = ["DiT", "DiTBlock", "DiTConfig", "Mlp", "Rope", "time_sinusoid"]

TIME_CHANNELS = 256
LAYOUTS_KEPT = 4
"""A job alternates between few shapes; a layout of a long video takes about 100 MB."""


class Mlp(Enum):
    """Kind of feed-forward network."""

    SWIGLU = "swiglu"
    GELU = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """Numbers that fix an architecture; see `models.presets` for the released ones."""

    width: int
    text_width: int
    num_layers: int
    num_heads: int
    head_dim: int
    latent_channels: int = 16
    mlp: Mlp
    mlp_ratio: float = 4
    rope: Rope
    rope_dim: int = 128
    """Channels over which integer positions spread their frequencies; ignored for positions from -1 to 1."""

    num_separate_layers: int
    """The first layers have own weights for video and text; the rest share one set."""

    last_layer_video_only: bool
    """The last layer neither modulates nor gates its text and has no feed-forward network for it."""

    output_modulation: bool
    window: Size3 = (4, 3, 3)

    @property
    def in_channels(self) -> int:
        """Current sample, condition and mask."""
        return 2 * self.latent_channels + 1

    @property
    def inner_width(self) -> int:
        """Width of queries, keys and values over all heads."""
        return self.num_heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward network."""
        if self.mlp is Mlp.SWIGLU:
            return 256 * math.ceil(int(2 * self.width * self.mlp_ratio / 3) / 256)
        return int(self.width * self.mlp_ratio)

    @property
    def rope_spec(self) -> RopeSpec:
        """What rotary tables depend on."""
        return RopeSpec(self.rope, self.head_dim, self.rope_dim)


Parts: TypeAlias = tuple[Tensor, ...]
"""`(video, text)` or, where weights are shared, one tensor with the text after the video; `(video,)` at the end."""

Inputs: TypeAlias = tuple[Tensor | Fp8Rows, ...]
"""Parts that a linear layer takes next: in 8 bits already where it computes in them."""


class PatchIn(nn.Module):
    """Latents `(sum t*h*w, 2C+1)` to tokens `(L, width)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(PATCH**2 * config.in_channels, config.width)

    def forward(self, video: Tensor, sizes: Sequence[Size3]) -> Tensor:
        tokens: Tensor = self.proj(patchify(video, sizes))
        return tokens


class PatchOut(nn.Module):
    """Tokens `(L, width)` to latents `(sum t*h*w, C)`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.width, PATCH**2 * config.latent_channels)

    def forward(self, tokens: Tensor, sizes: Sequence[Size3]) -> Tensor:
        return unpatchify(self.proj(tokens), sizes)


_ROUNDED_OTHERWISE = {12: math.inf, 40: -math.inf, 42: -math.inf}
"""Frequencies that the reference's float32 exponential rounds the other way. Float32 libraries differ in the last
place, and a timestep of 1000 makes a thousand of it: the rounding is fixed here, whatever the CPU."""


def time_sinusoid(timestep: Tensor) -> Tensor:
    """`(B,)` in 0..1000 to `(B, 256)` float32: 128 sines, then 128 cosines, of falling frequency."""
    half = TIME_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    frequencies = torch.exp((-math.log(10000.0) * exponents).double()).float()
    for index, direction in _ROUNDED_OTHERWISE.items():
        frequencies[index] = torch.nextafter(frequencies[index], torch.tensor(direction, device=frequencies.device))
    angles = (timestep.float()[:, None] * frequencies).double()
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class TimeEmbedding(nn.Module):
    """Timesteps `(B,)` to `(B, 6 * width)`, channel-major: sub-layer and vector vary fastest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(TIME_CHANNELS, width)
        self.proj_hid = nn.Linear(width, width)
        self.proj_out = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor) -> Tensor:
        weight = self.proj_in.weight
        x = time_sinusoid(timestep.to(weight.device)).to(weight.dtype)
        embedding: Tensor = self.proj_out(F.silu(self.proj_hid(F.silu(self.proj_in(x)))))
        return embedding


class SwiGLU(nn.Module):
    """`W_out(silu(W_gate x) * W_in x)` without biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj_in_gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.proj_out = nn.Linear(config.mlp_width, config.width, bias=False)
        self.proj_in = nn.Linear(config.width, config.mlp_width, bias=False)

    def forward(self, x: Tensor | Fp8Rows) -> Tensor:
        multiply = fp8_ops.silu_mul if isinstance(self.proj_out, Fp8Linear) else silu_mul
        y: Tensor = self.proj_out(multiply(self.proj_in_gate(x), self.proj_in(x)))
        return y


class GeluMlp(nn.Module):
    """`W_out(gelu(W_in x))` with the tanh form of GELU and biases."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj_in = nn.Linear(config.width, config.mlp_width)
        self.proj_out = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor | Fp8Rows) -> Tensor:
        hidden = self.proj_in(x)
        is_fp8 = isinstance(self.proj_out, Fp8Linear)
        hidden = fp8_ops.gelu(hidden) if is_fp8 else F.gelu(hidden, approximate="tanh")
        y: Tensor = self.proj_out(hidden)
        return y


def _per_stream(names: Sequence[str], make: Callable[[], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({name: make() for name in names})


def _apply(modules: nn.ModuleDict, parts: Inputs) -> Parts:
    # A lone video part uses the first entry: its own weights ("vid") or the shared ones ("all").
    return tuple(module(part) for module, part in zip(list(modules.values())[: len(parts)], parts, strict=True))


class WindowAttention(nn.Module):
    """Attention of each window's video tokens together with all text tokens of that video."""

    def __init__(self, config: DiTConfig, names: Sequence[str]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.inner_width
        self.proj_qkv = _per_stream(names, lambda: nn.Linear(config.width, 3 * inner, bias=False))
        self.proj_out = _per_stream(names, lambda: nn.Linear(inner, config.width))
        self.norm_q = _per_stream(names, lambda: RMSNorm(config.head_dim))
        self.norm_k = _per_stream(names, lambda: RMSNorm(config.head_dim))
        self.rope = RopeBuffer(config.rope_spec)

    @property
    def is_fp8(self) -> bool:
        """Whether the products are in 8 bits."""
        return isinstance(next(iter(self.proj_qkv.values())), Fp8Linear)

    def forward(
        self, parts: Inputs, layout: PackedLayout, windows: WindowLayout, attend: Attend, *, keep_text: bool
    ) -> Parts:
        """Both streams, or only the video as one part when the result for the text is not needed."""
        streams = [
            ProjectedTokens(qkv, cast("RMSNorm", norm_q).weight, cast("RMSNorm", norm_k).weight)
            for qkv, norm_q, norm_k in zip(
                _apply(self.proj_qkv, parts), self.norm_q.values(), self.norm_k.values(), strict=True
            )
        ]
        q, k, v = window_qkv(streams, windows.rotation, windows.rows, self.num_heads)
        del streams  # here and below, what is no longer needed makes room for what follows
        mixed = attend(q, k, v, windows.lengths).flatten(1)
        del q, k, v
        if not keep_text:
            return _apply(self.proj_out, (self._rows(mixed, windows.restore),))
        # A text takes part in every window of its video; its result is the mean, small border windows included.
        text = torch.cat([mixed[places].mean(0) for places in windows.text_places])
        out: Inputs
        if len(parts) == 2:
            out = self._rows(mixed, windows.restore), text
        elif self.is_fp8:
            out = (fp8_ops.quantize_joined(mixed, windows.restore, text),)
        else:
            out = (torch.cat([mixed.index_select(0, windows.restore), text]),)
        del mixed
        return _apply(self.proj_out, out)

    def _rows(self, x: Tensor, rows: Tensor) -> Tensor | Fp8Rows:
        return fp8_ops.quantize_rows(x, rows) if self.is_fp8 else x.index_select(0, rows)


class DiTBlock(nn.Module):
    """Attention and feed-forward network, each normed, modulated, gated and added to the residual stream."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        self.shared = index >= config.num_separate_layers
        self.shifted = index % 2 == 1
        self.video_only = config.last_layer_video_only and index == config.num_layers - 1
        names = ("all",) if self.shared else ("vid", "txt")
        after_attention = names[:1] if self.video_only else names
        make_mlp = SwiGLU if config.mlp is Mlp.SWIGLU else GeluMlp
        self.attn = WindowAttention(config, names)
        self.mlp = _per_stream(after_attention, lambda: make_mlp(config))
        self.ada = _per_stream(after_attention, lambda: BlockModulation(config.width))

    def forward(
        self, parts: Parts, embedding: Tensor, layout: PackedLayout, attend: Attend, *, keep_text: bool
    ) -> Parts:
        """`embedding` `(2, 3, B, C)`. Without `keep_text`, or in a video-only block, the result is `(video,)`."""
        windows = layout.shifted if self.shifted else layout.regular
        if self.shared and len(parts) == 2:
            parts = (torch.cat(parts),)
        mixed = self.attn(self._attention_input(parts, embedding, layout), layout, windows, attend, keep_text=keep_text)
        if self.video_only or not keep_text:
            parts, mixed = (parts[0][: layout.num_video],), (mixed[0][: layout.num_video],)
        parts = self._leave(mixed, parts, ATTENTION, embedding, layout)
        del mixed
        hidden = _apply(self.mlp, self._enter(parts, MLP, embedding, layout))
        return self._leave(hidden, parts, MLP, embedding, layout)

    def _attention_input(self, parts: Parts, embedding: Tensor, layout: PackedLayout) -> Inputs:
        if not self.video_only:
            return self._enter(parts, ATTENTION, embedding, layout)
        video, text = parts if len(parts) == 2 else parts[0].split([layout.num_video, layout.num_text])
        owners = layout.owners_of((video,))[0]
        entered = cast("Tensor", self._modulations((video,))[0].enter(video, ATTENTION, embedding, owners))
        return (torch.cat([entered, rms_norm(text)]),) if self.shared else (entered, rms_norm(text))

    def _enter(self, parts: Parts, layer: int, embedding: Tensor, layout: PackedLayout) -> Inputs:
        return tuple(
            ada.enter(part, layer, embedding, owners, fp8=self.attn.is_fp8)
            for ada, part, owners in zip(self._modulations(parts), parts, layout.owners_of(parts), strict=True)
        )

    def _leave(self, parts: Parts, residual: Parts, layer: int, embedding: Tensor, layout: PackedLayout) -> Parts:
        streams = zip(self._modulations(parts), parts, residual, layout.owners_of(parts), strict=True)
        return tuple(ada.leave(part, rest, layer, embedding, owners) for ada, part, rest, owners in streams)

    def _modulations(self, parts: Parts) -> list[BlockModulation]:
        return cast("list[BlockModulation]", list(self.ada.values())[: len(parts)])


class DiT(nn.Module):
    """Predicts the velocity `x_T - x_0` of packed video latents."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.vid_in = PatchIn(config)
        self.txt_in = nn.Identity() if config.text_width == width else nn.Linear(config.text_width, width)
        self.emb_in = TimeEmbedding(width)
        self.blocks = nn.ModuleList(DiTBlock(config, index) for index in range(config.num_layers))
        if config.output_modulation:
            self.vid_out_norm = RMSNorm(width)
            self.vid_out_ada = OutputModulation(width)
        self.vid_out = PatchOut(config)
        self.is_fp8 = False
        self._layouts: OrderedDict[tuple[object, ...], PackedLayout] = OrderedDict()
        self._embedding: tuple[object, Tensor] | None = None

    def use_fp8(self) -> list[str]:
        """From here on the large products are in 8 bits (`models.fp8`); returns the names of their layers.

        The weights that they had are gone: load and cast them before. Raises ValueError for a network too small for it.
        """
        names = [f"blocks.{name}" for name in quantize_linears(self.blocks)]
        self.is_fp8 = True
        return names

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        timestep: Tensor,
        video_shape: Tensor,
        text_shape: Tensor,
        on_block: Callable[[], None] | None = None,
        *,
        attend: Attend = attention,
    ) -> Tensor:
        """Velocity `(sum t*h*w, C)` in the order of the input latents and the dtype of the weights.

        video: `(sum t*h*w, 2C+1)` latents of B videos, rows in t, h, w order; sample, condition, mask.
        text: `(M, text_width)`, the texts of the B videos one after the other.
        timestep: `(B,)` in 0..1000.
        video_shape: `(B, 3)` latent sizes t, h, w (h and w even). text_shape: `(B,)` or `(B, 1)` text lengths.
        on_block: called before each block; whatever it raises ends the call.
        attend: computes packed attention.
        Raises ValueError when shapes and token counts disagree.
        """
        layout = self.layout(video_shape, text_shape, video.device)
        if len(video) != layout.num_video * PATCH**2 or len(text) != layout.num_text:
            raise ValueError(
                f"Got {len(video)} latents and {len(text)} text tokens for shapes "
                f"{video_shape.tolist()} and {text_shape.flatten().tolist()}."
            )
        dtype = self.vid_in.proj.weight.dtype
        embedding = self.embed_time(timestep)
        parts: Parts = (self.vid_in(video.to(dtype), layout.sizes), self.txt_in(text.to(dtype)))
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            if on_block is not None:
                on_block()
            parts = block(parts, embedding, layout, attend, keep_text=index < last)
        tokens = parts[0][: layout.num_video]
        if self.config.output_modulation:
            tokens = self.vid_out_ada(self.vid_out_norm(tokens), embedding, *layout.owners_of((tokens,)))
        velocity: Tensor = self.vid_out(tokens, layout.sizes)
        return velocity

    def layout(self, video_shape: Tensor, text_shape: Tensor, device: torch.device) -> PackedLayout:
        """Everything that depends on shapes alone; the last few are kept."""
        sizes = tuple((int(t), int(h), int(w)) for t, h, w in video_shape.tolist())
        lengths = tuple(text_shape.flatten().tolist())
        key = (sizes, lengths, device)
        layout = self._layouts.pop(key, None)
        if layout is None:
            layout = build_layout(sizes, lengths, self.config.window, self.config.rope_spec, device)
        self._layouts[key] = layout
        if len(self._layouts) > LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return layout

    def forget(self) -> None:
        """Drops what is kept for the next call: layouts and the time embedding."""
        self._layouts.clear()
        self._embedding = None

    def embed_time(self, timestep: Tensor) -> Tensor:
        """Time embedding `(2, 3, B, C)` (sub-layer; shift, scale, gate). Kept for the next call while weights stay."""
        if torch.is_grad_enabled():
            return self._compute_embedding(timestep)
        weights = self.emb_in.parameters()
        key = (timestep.tolist(), [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in weights])
        if self._embedding is None or self._embedding[0] != key:
            self._embedding = (key, self._compute_embedding(timestep))
        return self._embedding[1]

    def _compute_embedding(self, timestep: Tensor) -> Tensor:
        embedding: Tensor = self.emb_in(timestep)
        return embedding.view(len(timestep), self.config.width, 2, 3).permute(2, 3, 0, 1).contiguous()
