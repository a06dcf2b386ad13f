"""Networks: DiT and video VAE; torch and einops only."""
