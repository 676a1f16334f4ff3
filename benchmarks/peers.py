"""The networks of Stable Diffusion v1 as diffusers, transformers and OpenVINO run them, with sdjax's weights.

Each function returns calls by the name of who runs them; a call takes numpy arrays in sdjax's layout and returns numpy.
"""

import copy

import diffusers
import numpy as np
import torch
import transformers

from sdjax.convert.bundle import bundle_of_params
from sdjax.convert.write.safetensors_writer import tensors_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names


def modules(pipe):
    """Returns diffusers' and transformers' modules with the pipeline's weights, in float32."""
    model = bundle_of_params(pipe.config, pipe.params, pipe.tokenizer)
    tensors = {name: leaf.read() for name, leaf in tensors_of(model, "diffusers").items()}

    def weights(part):
        own = {name.removeprefix(part + "/"): array for name, array in tensors.items() if name.startswith(part + "/")}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in own.items()}

    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    tower = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
    )
    text = transformers.CLIPTextModel(tower)
    for module, part in ((unet, "unet"), (vae, "vae"), (text, "text_encoder")):
        own = weights(part)
        if not any(name.startswith("text_model.") for name in module.state_dict()):  # a level that transformers 5 lacks
            own = {name.removeprefix("text_model."): array for name, array in own.items()}
        missing, unexpected = module.load_state_dict(own, strict=False)
        lost = [name for name in missing if "position_ids" not in name] + unexpected
        if lost:
            raise SystemExit(f"{part}: sdjax and diffusers name other tensors, such as {lost[0]}")
        module.eval().requires_grad_(False)
    return {"unet": Denoiser(unet), "decoder": Decoder(vae), "text": Text(text)}


class Denoiser(torch.nn.Module):
    """The UNet with arguments in order, as OpenVINO traces it."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, context):
        return self.unet(x, t, encoder_hidden_states=context, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """Decoding alone, of the unscaled latent."""

    def __init__(self, vae):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z):
        return self.decoder(self.post_quant_conv(z))


class Text(torch.nn.Module):
    """The last hidden state alone."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def forward(self, ids):
        return self.text(ids).last_hidden_state


def torch_calls(module, dtype, names):
    """Returns the named ways in which PyTorch runs a module: "diffusers", as it is, ", channels_last", ", compiled".

    The module's own weights serve the first in float32, so that memory holds as few copies as can be.
    """
    plain = module if dtype == "float32" else copy.deepcopy(module).to(DTYPES[dtype])
    ways = {"diffusers": plain}
    maps = any(parameter.ndim == 4 for parameter in plain.parameters())
    if maps and {"diffusers, channels_last", "diffusers, compiled"} & set(names):
        ways["diffusers, channels_last"] = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    if "diffusers, compiled" in names:
        ways["diffusers, compiled"] = torch.compile(list(ways.values())[-1])

    def caller(way):
        def call(*arrays):
            tensors = [torch.from_numpy(np.asarray(a)) for a in arrays]
            out = way(*(a.to(DTYPES[dtype]) if a.is_floating_point() and a.ndim > 1 else a for a in tensors))
            return out.float().numpy()

        return call

    return {name: caller(way) for name, way in ways.items() if name in names}


def traced(module, arrays, shapes=None):
    """Returns OpenVINO's model of a module, for the arrays' shapes or for others, where -1 is any number."""
    import openvino

    example = tuple(torch.from_numpy(np.asarray(a)) for a in arrays)
    return openvino.convert_model(module, example_input=example, input=shapes or [a.shape for a in example])


def openvino_call(model, dtype):
    """Returns OpenVINO's call of a model or of a file of one, for latency, in one type."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda *arrays: compiled(list(arrays))[0]
