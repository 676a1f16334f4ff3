"""LPIPS, the discriminator and the autoencoder's two losses in PyTorch, float64, with random weights.

`python tests/autoencoder_peer.py` writes golden/autoencoder.npz: what they make of the cases below.
"""

import jax
import numpy as np

from sdjax.config import VAEConfig
from sdjax.convert.names import axes, naming
from sdjax.nn import AutoencoderKL
from sdjax.nn.metrics.discriminator import Discriminator
from sdjax.nn.metrics.lpips import LPIPS
from sdjax.train.objectives.autoencoder import AutoencoderObjective

import reference

CONFIG = VAEConfig(channels=(16, 32), num_res_blocks=1, norm_groups=8, scale_factor=0.5)
OBJECTIVE = AutoencoderObjective(  # no weight is 1, and no term is lost beside another
    kl_weight=0.03, perceptual_weight=0.8, logvar=0.3, disc_start=3, disc_weight=0.6, disc_factor=0.7
)
LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # VGG16's widths, 0 a pooling
KEPT = {  # the gradients that are kept; of all the norm is
    "vae": ("encoder.conv_in.weight", "quant_conv.weight", "decoder.mid_block.attentions.0.to_q.weight",
            "decoder.conv_out.weight"),
    "discriminator": ("main.0.weight", "main.3.weight", "main.9.bias", "main.11.weight"),
}  # fmt: skip
METRICS = ("pixels", "perceptual", "nll", "kl", "generator", "adaptive", "discriminator", "logits_real", "logits_fake")


def parameters(shapes, prefix=""):
    """Returns random parameters of these shapes twice: as a tree, and by their names in PyTorch."""
    tensors = {}

    def leaf(path, shape):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        name, kind = prefix + naming.torch_name(path), axes.kind_of(path, shape.shape)
        tensors[name] = reference.fill(name, axes.stored_shape(kind, shape.shape))
        if name.startswith("lin"):  # a distance has no negative weights
            tensors[name] = abs(tensors[name])
        return axes.to_flax(kind, tensors[name])

    return jax.tree_util.tree_map_with_path(leaf, shapes), tensors


def pictures(seed, size=(32, 32)):
    """Returns two pictures in [-1, 1], float32 [2, h, w, 3], smooth enough for features of many sizes."""
    x = np.random.default_rng(seed).standard_normal((2, *size, 3)).cumsum(1).cumsum(2)
    return np.tanh(0.2 * x).astype(np.float32)


def lpips_case():
    """Returns (parameters, tensors) of an LPIPS."""
    image = np.zeros((1, 16, 16, 3), np.float32)
    tree, tensors = parameters(jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"])
    return tree, {name.removeprefix("vgg."): tensor for name, tensor in tensors.items()}


def discriminator_case():
    """Returns (parameters, tensors) of a discriminator."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    return parameters(jax.eval_shape(Discriminator().init, jax.random.key(0), image)["params"])


def objective_case():
    """Returns the parameters of an autoencoder, its tensors, pictures (uint8) and the noise of their latents."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    tree, tensors = parameters(jax.eval_shape(AutoencoderKL(CONFIG).init, jax.random.key(0), image)["params"])
    noise = np.random.default_rng(1).standard_normal((2, 16, 16, 4)).astype(np.float32)
    # Pictures for which no ReLU, no absolute value and no pooling changes sides by float32's rounding
    return tree, tensors, np.round((pictures(5) + 1) * 127.5).astype(np.uint8), noise


def doubles(array):
    """Returns an array as a float64 tensor, pictures and maps channels first."""
    import torch

    tensor = torch.tensor(np.asarray(array), dtype=torch.float64)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def loaded(module, tensors):
    """Returns a module in float64 with these tensors; every one has its place, and only statistics have none."""
    import torch

    wrong = module.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()}, strict=False)
    assert not wrong.unexpected_keys
    assert all("running_" in name or "num_batches" in name for name in wrong.missing_keys)
    return module.double()


class Lpips:
    """The distance of two pictures [b, 3, h, w]: VGG16 as torchvision counts its layers."""

    def __init__(self, tensors):
        import torch
        from torch import nn

        layers, inputs = [], 3
        for width in LAYERS:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            inputs = width or inputs
        features = {name: array for name, array in tensors.items() if name.startswith("features.")}
        self.features = loaded(nn.ModuleDict({"features": nn.Sequential(*layers)}), features)["features"]
        self.lines = [doubles(tensors[f"lin{i}.model.1.weight"][0, :, :, 0]).reshape(1, -1, 1, 1) for i in range(5)]
        self.shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).reshape(1, 3, 1, 1)
        self.scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).reshape(1, 3, 1, 1)

    def maps(self, x):
        """Returns what goes into the poolings, the last of which is left out."""
        x, maps = (x - self.shift) / self.scale, []
        for layer in self.features:
            if type(layer).__name__ == "MaxPool2d":
                maps.append(x)
            x = layer(x)
        return [*maps, x]

    def __call__(self, a, b):
        total = 0
        for x, y, line in zip(self.maps(a), self.maps(b), self.lines, strict=True):
            x, y = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
            total = total + ((x - y).square() * line).sum(1).mean((1, 2))
        return total


def discriminator(tensors):
    """Returns the PatchGAN discriminator, a function of pictures [b, 3, h, w]."""
    from torch import nn

    main = nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.LeakyReLU(0.2),
        nn.Conv2d(256, 512, 4, 1, 1, bias=False), nn.BatchNorm2d(512), nn.LeakyReLU(0.2),
        nn.Conv2d(512, 1, 4, 1, 1),
    )  # fmt: skip
    return loaded(nn.ModuleDict({"main": main}), tensors)["main"].train()


def autoencoder(tensors):
    """Returns diffusers' autoencoder of CONFIG."""
    import diffusers

    peer = diffusers.AutoencoderKL(
        block_out_channels=CONFIG.channels, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return loaded(peer, tensors)


def losses(vae, judge, lpips, image, noise, objective=OBJECTIVE):
    """Returns {metric: number} and {part: {name: gradient}} of one step, two losses for two optimisers."""
    import torch
    from torch.nn import functional as F

    o, image, noise = objective, doubles(image.astype(np.float32) / 127.5 - 1), doubles(noise)
    posterior = vae.encode(image).latent_dist
    x = vae.decode(posterior.mean + posterior.std * noise).sample
    error, distance = (image - x).abs(), lpips(image, x)
    total = error + o.perceptual_weight * distance.reshape(-1, 1, 1, 1)
    nll = (total / np.exp(o.logvar) + o.logvar).sum() / len(image)
    kl = posterior.kl().sum() / len(image)
    generator = -judge(x).mean()
    last = vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, generator)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    names, learned = zip(*vae.named_parameters())
    loss = nll + o.kl_weight * kl + o.disc_weight * weight * o.disc_factor * generator
    of_vae = dict(zip(names, torch.autograd.grad(loss, learned)))
    real, fake = judge(image), judge(x.detach())
    against = o.disc_factor * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    names, learned = zip(*judge.named_parameters())
    of_judge = dict(zip([f"main.{name}" for name in names], torch.autograd.grad(against, learned)))
    numbers = error.mean(), distance.mean(), nll, kl, generator, weight, against, real.mean(), fake.mean()
    metrics = dict(zip(METRICS, [float(number.detach()) for number in numbers], strict=True))
    metrics["loss"] = float((loss + against).detach())
    return metrics, {"vae": of_vae, "discriminator": of_judge}


def as_tensors(tree):
    """Returns a tree of Flax's as PyTorch's arrays by name."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        named[naming.torch_name(path)] = axes.to_torch(axes.kind_of(path, leaf.shape), np.asarray(leaf))
    return named


def gradient(function, x):
    """Returns a function's value at a picture, and the gradient of its entries' sum, both channels last."""
    x = doubles(x).requires_grad_()
    y = function(x)
    y.sum().backward()
    last = lambda a: np.moveaxis(a.detach().numpy(), 1, -1) if a.ndim == 4 else a.detach().numpy()  # noqa: E731
    return last(y), last(x.grad)


def golden():
    """Returns the arrays of golden/autoencoder.npz."""
    lpips, judge = Lpips(lpips_case()[1]), discriminator(discriminator_case()[1])
    a, b = pictures(0), pictures(1)
    arrays = {}
    arrays["lpips/value"], arrays["lpips/gradient"] = gradient(lambda x: lpips(doubles(a), x), b)
    arrays["discriminator/value"], arrays["discriminator/gradient"] = gradient(lambda x: judge(x).square(), a)
    _, tensors, image, noise = objective_case()
    metrics, gradients = losses(autoencoder(tensors), judge, lpips, image, noise)
    arrays |= {f"metrics/{name}": value for name, value in metrics.items()}
    for part, names in KEPT.items():
        arrays |= {f"{part}/{name}": gradients[part][name].numpy() for name in names}
        squares = sum(float(one.square().sum()) for one in gradients[part].values())
        arrays[f"{part}/norm"] = np.sqrt(squares)
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


if __name__ == "__main__":
    np.savez_compressed(reference.GOLDEN / "autoencoder.npz", **golden())
