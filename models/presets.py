"""The released architectures as values: numbers only."""

from models.dit import DiTConfig, Mlp, Rope
from models.video_vae import VAEConfig

SEEDVR2_3B = DiTConfig(
    width=2560,
    text_width=5120,
    num_layers=32,
    num_heads=20,
    head_dim=128,
    mlp=Mlp.SWIGLU,
    rope=Rope.INTEGER,
    rope_dim=128,
    num_separate_layers=10,
    last_layer_video_only=True,
    output_modulation=True,
)

SEEDVR2_7B = DiTConfig(
    width=3072,
    text_width=5120,
    num_layers=36,
    num_heads=24,
    head_dim=128,
    mlp=Mlp.GELU,
    rope=Rope.PIXEL,
    num_separate_layers=36,
    last_layer_video_only=False,
    output_modulation=False,
)

VIDEO_VAE = VAEConfig()

NANO_DIT = DiTConfig(
    width=512,
    text_width=64,
    num_layers=4,
    num_heads=4,
    head_dim=64,
    latent_channels=96,
    mlp=Mlp.GELU,
    mlp_ratio=1,
    rope=Rope.PIXEL,
    num_separate_layers=0,
    last_layer_video_only=False,
    output_modulation=False,
)

NANO_VAE = VAEConfig(widths=(16, 24, 96, 104), num_blocks=1, num_groups=1, latent_channels=96)
