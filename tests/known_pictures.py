"""Pictures of a small random model as other tools make them, with PyTorch: what `test_known_pictures.py` compares with.

`python tests/known_pictures.py` writes them to `golden/known_pictures.npz`. It needs torch, diffusers and transformers.
diffusers runs its own pipelines. k-diffusion, AUTOMATIC1111, ComfyUI and CompVis's scripts are not imported: the loops
below follow their formulas, with PyTorch's networks and generators.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

PROMPT, NEGATIVE, SEED, STEPS, SCALE = "a cat on a blue background", "blurry", 42, 6, 5.0
STRENGTH = 0.7
GOLDEN = Path(__file__).parent / "golden" / "known_pictures.npz"
KEPT = (slice(None, None, 2), slice(None, None, 2))  # pixels of a picture that are stored

# What `sdjax` is asked for: options of `text_to_image`, or of `image_to_image` where there is a strength
CASES = {
    "diffusers DDIM": {"compat": "diffusers", "sampler": "DDIMScheduler"},
    "diffusers PNDM": {"compat": "diffusers", "sampler": "PNDMScheduler"},
    "diffusers Euler a": {"compat": "diffusers", "sampler": "EulerAncestralDiscreteScheduler"},
    "diffusers DPM++ 2M": {"compat": "diffusers", "sampler": "DPMSolverMultistepScheduler"},
    "diffusers img2img": {"compat": "diffusers", "sampler": "DDIMScheduler", "strength": STRENGTH},
    "a1111 Euler a": {"compat": "a1111", "sampler": "Euler a", "noise_source": "torch_cpu"},
    "a1111 DPM++ 2M Karras": {"compat": "a1111", "sampler": "DPM++ 2M Karras", "noise_source": "torch_cpu"},
    "comfyui euler_ancestral normal": {
        "compat": "comfyui", "sampler": "euler_ancestral", "schedule": "normal", "noise_source": "comfyui",
    },
    "compvis DDIM": {"compat": "compvis", "sampler": "ddim", "noise_source": "torch_cpu"},
    "k-diffusion euler": {"compat": "k-diffusion", "sampler": "sample_euler"},
}  # fmt: skip


def references(folder: str) -> dict[str, np.ndarray]:
    """Returns the pictures of CASES, uint8 [64, 64, 3], by the model in a diffusers folder."""
    import diffusers
    import torch

    torch.set_grad_enabled(False)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE,
             "output_type": "pil"}  # fmt: skip
    out = {}
    # As in the released repositories, whose files do not say the spacing: every class then has its own
    config = {key: value for key, value in pipe.scheduler.config.items() if key != "timestep_spacing"}
    config["skip_prk_steps"] = True  # PNDM's file
    for name in ("DDIM", "PNDM", "Euler a", "DPM++ 2M"):
        scheduler = {"DDIM": diffusers.DDIMScheduler, "PNDM": diffusers.PNDMScheduler,
                     "Euler a": diffusers.EulerAncestralDiscreteScheduler,
                     "DPM++ 2M": diffusers.DPMSolverMultistepScheduler}[name]  # fmt: skip
        pipe.scheduler = scheduler.from_config(config)
        made = pipe(**asked, height=64, width=64, generator=torch.Generator().manual_seed(SEED)).images[0]
        out[f"diffusers {name}"] = np.asarray(made)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.scheduler = diffusers.DDIMScheduler.from_config(config)
    other.set_progress_bar_config(disable=True)
    from PIL import Image

    image = Image.fromarray(start_picture())
    made = other(**asked, image=image, strength=STRENGTH, generator=torch.Generator().manual_seed(SEED)).images[0]
    out["diffusers img2img"] = np.asarray(made)
    tool = Tool(pipe)
    out["a1111 Euler a"] = tool.picture(tool.euler_ancestral(tool.discrete(STEPS), tool.goes_on(), tool.sigma_max))
    out["a1111 DPM++ 2M Karras"] = tool.picture(tool.dpmpp_2m(tool.karras(STEPS), tool.goes_on(), tool.sigma_max))
    scaled = (1 + tool.sigma_max**2) ** 0.5
    draws = tool.new_for_steps(SEED + 1)
    out["comfyui euler_ancestral normal"] = tool.picture(
        tool.euler_ancestral(tool.discrete(STEPS), draws, scaled, True)
    )
    out["compvis DDIM"] = tool.picture(tool.ddim(STEPS))
    steps = tool.euler_ancestral(tool.discrete(STEPS), tool.goes_on(), tool.sigma_max, eta=0)
    out["k-diffusion euler"] = tool.picture(steps)
    return out


def start_picture() -> np.ndarray:
    """Returns the picture that image to image starts from, uint8 [64, 64, 3]."""
    y, x = np.mgrid[:64, :64] / 63
    return np.uint8(255 * np.stack([x, y, 0.5 + 0.5 * np.sin(6 * x * y)], axis=-1))


class Tool:
    """The samplers of k-diffusion, which AUTOMATIC1111 and ComfyUI run, and CompVis's DDIM, around torch's networks."""

    def __init__(self, pipe):
        import torch

        self.torch, self.pipe = torch, pipe
        self.alphas = pipe.scheduler.alphas_cumprod.double()
        self.log_sigmas = ((1 - self.alphas) / self.alphas).sqrt().log()
        self.sigma_max = float(self.log_sigmas[-1].exp())
        self.contexts = self.torch.cat([self.encode(NEGATIVE), self.encode(PROMPT)])

    def encode(self, text):
        ids = self.pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids)[0]

    def discrete(self, n):
        """k-diffusion's get_sigmas: equidistant timesteps, log sigma interpolated."""
        t = np.linspace(999, 0, n)
        return [*np.exp(np.interp(t, np.arange(1000), self.log_sigmas.numpy())), 0.0]

    def karras(self, n):
        low, high = (float(self.log_sigmas[i].exp()) for i in (0, -1))
        return [*(np.linspace(high ** (1 / 7), low ** (1 / 7), n) ** 7), 0.0]

    def goes_on(self):
        """One generator for the starting noise and for the steps."""
        generator = self.torch.Generator().manual_seed(SEED)
        return lambda: self.torch.randn((4, 8, 8), generator=generator)[None]

    def new_for_steps(self, seed):
        """The starting noise, then the draws of another generator."""
        first, later = self.goes_on(), self.torch.Generator().manual_seed(seed)
        started = []

        def draw():
            if not started:
                started.append(True)
                return first()
            return self.torch.randn((1, 4, 8, 8), generator=later)

        return draw

    def denoised(self, x, sigma, whole=False):
        t = np.interp(np.log(sigma), self.log_sigmas.numpy(), np.arange(1000))
        t = np.abs(self.log_sigmas.numpy() - np.log(sigma)).argmin() if whole else t
        scaled = (x / (1 + sigma**2) ** 0.5).repeat(2, 1, 1, 1)
        epsilon = self.pipe.unet(scaled, self.torch.tensor(float(t)), self.contexts).sample
        uncond, cond = epsilon.chunk(2)
        return x - sigma * (uncond + SCALE * (cond - uncond))

    def euler_ancestral(self, sigmas, draw, scale, whole=False, eta=1.0):
        x = draw() * scale
        for a, b in zip(sigmas, sigmas[1:]):
            d = (x - self.denoised(x, a, whole)) / a
            up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
            x = x + d * ((b**2 - up**2) ** 0.5 - a)
            if b > 0 and eta:
                x = x + draw() * up
        return x

    def dpmpp_2m(self, sigmas, draw, scale):
        x, before, h_before = draw() * scale, None, None
        for a, b in zip(sigmas, sigmas[1:]):
            denoised = self.denoised(x, a)
            if b == 0:
                return denoised
            h = np.log(a / b)
            used = denoised
            if before is not None:
                r = h_before / h
                used = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * before
            x = b / a * x - np.expm1(-h) * used
            before, h_before = denoised, h
        return x

    def ddim(self, n):
        timesteps = np.arange(0, 1000, 1000 // n) + 1
        alphas = self.alphas.numpy()
        x = self.goes_on()()
        for i in reversed(range(len(timesteps))):
            t = min(timesteps[i], 999)
            a, b = alphas[t], alphas[timesteps[i - 1]] if i else alphas[0]
            epsilon = self.pipe.unet(x.repeat(2, 1, 1, 1), self.torch.tensor(float(t)), self.contexts).sample
            uncond, cond = epsilon.chunk(2)
            epsilon = uncond + SCALE * (cond - uncond)
            x0 = (x - (1 - a) ** 0.5 * epsilon) / a**0.5
            x = b**0.5 * x0 + (1 - b) ** 0.5 * epsilon
        return x

    def picture(self, x):
        """Returns uint8 pixels, rounded down as these tools do."""
        image = self.pipe.vae.decode(x.float() / self.pipe.vae.config.scaling_factor).sample[0]
        return np.uint8(255 * ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        import models

        models.pipeline().save(f"{folder}/model", to="diffusers")
        made = references(f"{folder}/model")
    np.savez_compressed(GOLDEN, **{name: picture[KEPT] for name, picture in made.items()})
