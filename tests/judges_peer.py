"""Random weights for the networks of other packages that judge pictures."""

import pytest

torch = pytest.importorskip("torch")


def random(module, seed=0):
    """Returns the module with random weights of a size that keeps activations near 1, in eval mode."""
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
