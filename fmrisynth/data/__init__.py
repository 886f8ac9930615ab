"""Arrays and tables: images, grids, normalisation, blocks, windows, splits and latents."""
