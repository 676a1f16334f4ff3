"""Networks that judge pictures against pytorch-fid, timm, open_clip and transformers, on random weights."""

import jax
import judges_peer
import numpy as np
import pytest

from sdjax import convert
from sdjax.config import TextConfig, VisionConfig
from sdjax.nn.metrics.clip_pair import ClipConfig
from sdjax.nn.metrics.dinov2 import position_matrix
from sdjax.nn.networks import NETWORKS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
TOLERANCE = 1e-4  # of float32 sums in another order, relative to the largest


def images(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def apply(name, config, params, *inputs):
    return jax.jit(lambda p, *x: NETWORKS[name].build(config).apply({"params": p}, *x))(params, *inputs)


def assert_close(got, want):
    want = want.detach().numpy()
    assert got.shape == want.shape
    assert np.abs(np.asarray(got) - want).max() < TOLERANCE * np.abs(want).max()


@pytest.fixture(scope="module")
def inception():
    return judges_peer.fid_inception()


def test_inception_equals_pytorch_fids(inception, tmp_path):
    import pytorch_fid.inception as fid

    torch.save(inception.state_dict(), tmp_path / "pt_inception.pth")
    config, params = convert.load_inception(tmp_path / "pt_inception.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "fid_inception_v3", lambda: inception)
        reference = fid.InceptionV3(resize_input=False, normalize_input=False)
    x = images(2, 299, 299, 3)
    with torch.no_grad():
        pool = reference(to_torch(x))[0][:, :, 0, 0]
        logits = pool @ inception.fc.weight.T  # without the bias, as torch-fidelity's logits_unbiased
    got = apply("inception", config, params, x)
    assert_close(got[0], pool)
    assert_close(got[1], logits)


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_equals_timms_and_its_own_names_are_read(gated, tmp_path):
    vit = pytest.importorskip("timm.models.vision_transformer")
    from timm.layers import SwiGLUPacked

    more = {"mlp_ratio": 2.66667 * 2, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if gated else {}
    model = judges_peer.random(vit.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=128, depth=3, num_heads=2, init_values=1e-5, num_classes=0,
        global_pool="token", **more,
    ))  # fmt: skip
    rename = {"fc1": "w12", "fc2": "w3"} if gated else {}
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, own in rename.items():
            name = name.replace(f"mlp.{theirs}.", f"mlp.{own}.")
        state[name] = tensor
    state["mask_token"] = torch.zeros(1, 128)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    config, params = convert.load_dinov2(tmp_path / "dinov2_vits14_pretrain.pth")
    assert (config.gated, config.grid, config.heads) == (gated, 4, 2)
    x = images(2, 56, 56, 3)
    assert_close(apply("dinov2", config, params, x), model(to_torch(x)))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_equals_transformers(registers, gated, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        use_swiglu_ffn=gated, **settings,
    )  # fmt: skip
    model = judges_peer.random(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path / "folder")
    x = images(2, 56, 56, 3)
    with torch.no_grad():
        want = model(to_torch(x)).last_hidden_state[:, 0]
    for place in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        config, params = convert.load_dinov2(place)
        assert (config.registers, config.gated) == (registers, gated)
        assert_close(apply("dinov2", config, params, x), want)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("patches", [16, 24, 37, 40])
def test_positions_are_resized_as_dinov2_does(patches, smooth):
    x = torch.randn(1, 5, 37, 37, dtype=torch.float64)
    how = {"size": (patches, patches)} if smooth else {"scale_factor": ((patches + 0.1) / 37,) * 2}
    want = torch.nn.functional.interpolate(x, mode="bicubic", antialias=smooth, **how)
    if patches == 37:
        want = x  # what it does not resize
    matrix = position_matrix(37, patches, smooth=smooth).astype(np.float64)
    got = np.einsum("im,jn,bcmn->bcij", matrix, matrix, x.numpy())
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)  # the matrix is float32


def clip_config(activation):
    vision = VisionConfig(
        image_size=56, patch_size=14, width=128, layers=2, heads=2, projection=64, activation=activation
    )
    return ClipConfig(vision, TextConfig(width=64, layers=3, heads=1, activation=activation))


def tokens():
    ids = np.zeros((2, 77), np.int32)
    ids[0, :5], ids[1, :9] = [49406, 320, 1125, 539, 49407], [49406, *range(400, 407), 49407]
    return ids


@pytest.mark.filterwarnings("ignore:.torch.jit")  # OpenAI's file is made with it all the same
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["bin", "safetensors", "torchscript"])
def test_clip_equals_open_clip_in_every_file(activation, kind, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    model = judges_peer.random(open_clip.CLIP(
        64, {"image_size": 56, "layers": 2, "width": 128, "head_width": 64, "patch_size": 14},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
        quick_gelu=activation == "quick_gelu",
    ))  # fmt: skip
    state, path, ids, x = dict(model.state_dict()), tmp_path / f"clip.{kind}", tokens(), images(2, 56, 56, 3)
    with torch.no_grad():
        want = model.encode_image(to_torch(x)), model.encode_text(torch.from_numpy(ids).long()), model.logit_scale
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    elif kind == "bin":
        torch.save(state, path)
    else:
        torch.jit.trace_module(Wrapped(model), {"forward": torch.zeros(1)}).save(str(path))
    config = clip_config(activation)
    got = apply("clip_pair", config, convert.load_clip_pair(path, config), x, ids)
    for one, other in zip(got, want):
        assert_close(one, other)


class Wrapped(torch.nn.Module):
    """OpenAI's file: a program with CLIP's modules and some numbers as attributes."""

    def __init__(self, model):
        super().__init__()
        for name, child in model.named_children():
            setattr(self, name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(model, name))
        for name, value in (("input_resolution", 56), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return x + self.logit_scale


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_equals_transformers(activation, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_act": activation, "projection_dim": 64}
    model = judges_peer.random(transformers.CLIPModel(transformers.CLIPConfig(
        text_config={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 1,
                     "bos_token_id": 49406, "eos_token_id": 49407, **sizes},
        vision_config={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 56, "patch_size": 14, **sizes},
        projection_dim=64,
    )))  # fmt: skip
    model.save_pretrained(tmp_path / "folder")
    x, ids, config = images(2, 56, 56, 3), tokens(), clip_config(activation)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids).long(), pixel_values=to_torch(x))
    for place in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        got = apply("clip_pair", config, convert.load_clip_pair(place, config), x, ids)
        for one, other in zip(got[:2], (out.image_embeds, out.text_embeds)):  # transformers' are of length 1
            assert_close(one / np.linalg.norm(one, axis=-1, keepdims=True), other)
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    with pytest.raises(convert.CheckpointError, match=f"hidden_act is {other}"):
        convert.load_clip_pair(tmp_path / "folder", clip_config(other))


def test_aesthetic_predictor_equals_the_linear_layers(tmp_path):
    layers = torch.nn.Sequential(*(
        torch.nn.Linear(*sizes) if sizes else torch.nn.Dropout(0.2)
        for sizes in ((768, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1))
    ))  # fmt: skip
    module = torch.nn.Module()
    module.layers = layers
    judges_peer.random(module)
    torch.save(module.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    config, params = convert.load_aesthetic(tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    x = images(3, 768)
    with torch.no_grad():
        want = layers(torch.nn.functional.normalize(torch.from_numpy(x), dim=-1))
    assert_close(apply("aesthetic", config, params, x), want)
