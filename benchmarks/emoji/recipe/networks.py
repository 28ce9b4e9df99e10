"""How the bundled model `emoji` was made: its configuration."""

from __future__ import annotations

from mobileo_mlx.models.dc_ae import DCAEConfig

VAE = DCAEConfig(
    # No blocks at full resolution: the first convolution halves the image. 16 pixels to a latent.
    encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",),
    decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",),
    encoder_block_out_channels=(16, 16, 64, 128, 128),
    decoder_block_out_channels=(16, 16, 64, 128, 128),
    encoder_layers_per_block=(0, 1, 1, 1, 2),
    decoder_layers_per_block=(0, 1, 1, 2, 2),
    encoder_qkv_multiscales=((),) * 4 + ((5,),),
    decoder_qkv_multiscales=((),) * 4 + ((5,),),
    scaling_factor=1.0,  # the autoencoder is trained towards latents of unit variance
    glumb_ratio=2.0,
)
