"""Between network and sampler: conditioning, guidance, the denoiser."""
