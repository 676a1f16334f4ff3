"""The layer between network and sampler: conditioning, guidance, denoiser."""
