"""Networks: the hybrid denoiser, the U-Net baseline and the tokenizers."""
