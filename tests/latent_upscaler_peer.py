"""The x2 latent upscaler in diffusers, small, on weights of `reference.fill`.

`python tests/latent_upscaler_peer.py` writes golden/latent_upscaler.npz: the UNet's output, and what seven Euler steps
of diffusers' StableDiffusionLatentUpscalePipeline make, written out because the pipeline wants a tokenizer's files. It
needs torch, diffusers and transformers.
"""

import numpy as np

import reference

UNET = {
    "act_fn": "gelu", "attention_head_dim": 8, "norm_num_groups": None, "block_out_channels": [32, 32, 64, 64],
    "time_cond_proj_dim": 160, "conv_in_kernel": 1, "conv_out_kernel": 1, "cross_attention_dim": 32,
    "down_block_types": ["KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3], "in_channels": 8, "mid_block_type": None,
    "only_cross_attention": False, "out_channels": 5, "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier", "timestep_post_act": "gelu", "layers_per_block": 2,
    "up_block_types": [*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"],
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 49408,
    "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407,
}  # fmt: skip
VAE = {
    "block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 1,
    "latent_channels": 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample",
    "timestep_spacing": "linspace",
}  # fmt: skip
IDS = np.array([[49406, 320, 2368, *[49407] * 74], [49406, *[49407] * 76]])  # "a cat" and the empty prompt, to 77
SCALE, STEPS = 3.0, 7


def inputs():
    """Returns the inputs by name: small latent, noise, log of sigma, context and condition."""
    return {
        "small": reference.fill("small", (1, 4, 8, 8)) * np.float32(4 * 8 * 8) ** 0.5,
        "noise": reference.fill("noise", (1, 4, 16, 16)) * np.float32(4 * 16 * 16) ** 0.5,
        "context": reference.fill("context", (1, 5, 32)) * np.float32(32 * 5) ** 0.5,
        "condition": reference.fill("condition", (1, 160)) * np.float32(160) ** 0.5,
    }


def fill_torch(model):
    """Returns the model with `reference.fill` of its tensors' names."""
    import torch

    state = model.state_dict()
    filled = {
        name: torch.from_numpy(reference.fill(name, tuple(v.shape)))
        for name, v in state.items()
        if v.is_floating_point()
    }
    model.load_state_dict({**state, **filled})
    return model.eval()


def golden():
    """Returns the arrays of golden/latent_upscaler.npz."""
    import diffusers
    import torch
    import transformers

    unet = fill_torch(diffusers.UNet2DConditionModel(**UNET))
    text = fill_torch(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)))
    given = {name: torch.from_numpy(array) for name, array in inputs().items()}
    large = torch.nn.functional.interpolate(given["small"], scale_factor=2, mode="nearest")
    with torch.no_grad():
        one = unet(
            torch.cat([given["noise"], large], 1),
            torch.tensor(0.7 / 4),
            given["context"],
            timestep_cond=given["condition"],
        )
        told = text(torch.from_numpy(IDS[::-1].copy()), output_hidden_states=True)
        context, pooled = told.hidden_states[-1], told.pooler_output
        condition = torch.cat([torch.ones(2, 64), torch.zeros(2, 64), pooled], 1)
        scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULER)
        scheduler.set_timesteps(STEPS)
        x = given["noise"] * scheduler.init_noise_sigma
        for sigma, t in zip(scheduler.sigmas, scheduler.timesteps):
            both = torch.cat([scheduler.scale_model_input(x, t)] * 2)
            out = unet(
                torch.cat([both, torch.cat([large] * 2)], 1), torch.log(sigma) / 4, context, timestep_cond=condition
            )
            x0 = x / (sigma**2 + 1) + sigma / (sigma**2 + 1) ** 0.5 * out.sample[:, :-1]
            x = scheduler.step(x0[:1] + SCALE * (x0[1:] - x0[:1]), t, x).prev_sample
    return {"unet": one.sample[:, :-1].numpy(), "run": x.numpy(), "unet_names": np.array(list(unet.state_dict())),
            "text_names": np.array(list(text.state_dict()))}  # fmt: skip


if __name__ == "__main__":
    np.savez_compressed(reference.GOLDEN / "latent_upscaler.npz", **golden())
