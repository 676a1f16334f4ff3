"""The networks that judge pictures in other packages (PyTorch), with weights made from names or by chance.

`python tests/judges_peer.py` writes golden/judges.npz: what timm, open_clip and pytorch-fid make of the cases below.
"""

import numpy as np
import pytest

from sdjax.config import TextConfig, VisionConfig
from sdjax.nn.metrics.clip_pair import ClipConfig

import reference

CONFIG = ClipConfig(
    VisionConfig(image_size=14, patch_size=7, width=128, layers=2, heads=2, projection=64, activation="gelu"),
    TextConfig(
        width=64, layers=2, heads=1, max_length=6, vocab_size=9, bos_token_id=7, eos_token_id=8, pad_token_id=0,
        activation="gelu",
    ),
)  # fmt: skip
IDS = np.array([[7, 1, 2, 8, 0, 0], [7, 5, 4, 3, 6, 8]], np.int32)
SMALL = 91  # pixels of Inception's pictures


def images(side, seed=1):
    return np.random.default_rng(seed).standard_normal((2, side, side, 3), np.float32)


def filled(shapes):
    """Returns tensors made from their names. Variances are positive."""
    tensors = reference.fill_all({name: tuple(shape) for name, shape in shapes.items()})
    return {name: np.asarray(1 + one**2 if name.endswith("running_var") else one) for name, one in tensors.items()}


def shapes_of(module):
    return {name: one.shape for name, one in module.state_dict().items() if one.is_floating_point()}


def random(module, seed=0):
    """Returns the PyTorch module with random weights of a size that keeps activations near 1, in eval mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var") or (tensor.ndim < 2 and name.endswith(("weight", "gamma", "lambda1"))):
                tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
            elif tensor.ndim < 2:
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(noise * (1.4 / max(tensor[0].numel(), 1)) ** 0.5)
    return module.eval()


def fid_inception():
    """Returns pytorch-fid's Inception v3 with random weights."""
    fid = pytest.importorskip("pytorch_fid.inception")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(fid.torchvision.models.Inception3, "load_state_dict", lambda self, state: None)
        return random(fid.fid_inception_v3())


def dinov2():
    """Returns timm's small DINOv2."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=28, patch_size=14, embed_dim=64, depth=2, num_heads=1, init_values=1e-5, num_classes=0,
        global_pool="token",
    )  # fmt: skip


def clip():
    """Returns OpenCLIP's small CLIP, of CONFIG."""
    import open_clip

    return open_clip.CLIP(
        64, {"image_size": 14, "layers": 2, "width": 128, "head_width": 64, "patch_size": 7},
        {"context_length": 6, "vocab_size": 9, "width": 64, "heads": 1, "layers": 2},
    )  # fmt: skip


def golden():
    """Returns the outputs of the three networks, and the shapes of their tensors as text."""
    import json

    import torch

    def pixels(side):
        return torch.from_numpy(images(side).transpose(0, 3, 1, 2).copy())

    def loaded(module):
        module.load_state_dict({name: torch.from_numpy(one) for name, one in filled(shapes_of(module)).items()}, False)
        return module.eval()

    modules = {"dinov2": dinov2(), "clip": clip(), "inception": fid_inception()}
    shapes = {name: {key: list(one) for key, one in shapes_of(module).items()} for name, module in modules.items()}
    out = {"shapes": np.array(json.dumps(shapes))}
    with torch.no_grad():
        out["dinov2"] = loaded(modules["dinov2"])(pixels(28)).numpy()
        pair = loaded(modules["clip"])
        out["clip/image"] = pair.encode_image(pixels(14)).numpy()
        out["clip/text"] = pair.encode_text(torch.from_numpy(IDS).long()).numpy()
        import pytorch_fid.inception as fid

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fid, "fid_inception_v3", lambda: loaded(modules["inception"]))
            pool = fid.InceptionV3(resize_input=False, normalize_input=False)(pixels(SMALL))[0]
        out["inception"] = pool[:, :, 0, 0].numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(reference.GOLDEN / "judges.npz", **golden())
