"""Networks that measure pictures: LPIPS and the discriminator."""
