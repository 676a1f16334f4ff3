"""Files of the networks that judge pictures: every layout gives the same parameters, and what is refused.

The names are written out here, as OpenAI, facebookresearch and transformers have them.
"""

import zlib

import jax
import numpy as np
import pytest
from checkpoint_writer import torch_members, torch_zip, zip_archive
from pickle_writer import Call, Global, tensors
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.config import TextConfig, VisionConfig
from sdjax.convert import CheckpointError
from sdjax.nn.metrics.clip_pair import ClipConfig
from sdjax.nn.metrics.inception import InceptionConfig
from sdjax.nn.networks import NETWORKS

V, T = 128, 64  # widths of the towers
CLIP = ClipConfig(
    VisionConfig(image_size=14, patch_size=7, width=V, layers=1, heads=2, projection=T),
    TextConfig(width=T, layers=1, heads=1, max_length=6, vocab_size=9, bos_token_id=7, eos_token_id=8, pad_token_id=0),
)
BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
FIXED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}  # fmt: skip


def both(*pairs):
    return {
        f"{name}.{leaf}": shape for name, weight, bias in pairs for leaf, shape in (("weight", weight), ("bias", bias))
    }


def block(name, d):
    return both(
        (f"{name}.ln_1", (d,), (d,)), (f"{name}.ln_2", (d,), (d,)), (f"{name}.mlp.c_fc", (4 * d, d), (4 * d,)),
        (f"{name}.mlp.c_proj", (d, 4 * d), (d,)), (f"{name}.attn.out_proj", (d, d), (d,)),
    ) | {f"{name}.attn.in_proj_weight": (3 * d, d), f"{name}.attn.in_proj_bias": (3 * d,)}  # fmt: skip


def filled(shapes):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def openai():
    """Returns the tensors of OpenAI's file, with those that it has beside."""
    arrays = filled({
        "visual.class_embedding": (V,), "visual.conv1.weight": (V, 3, 7, 7), "visual.positional_embedding": (5, V),
        "visual.proj": (V, T), "token_embedding.weight": (9, T), "positional_embedding": (6, T),
        "text_projection": (T, T), "logit_scale": (),
        **both(("visual.ln_pre", (V,), (V,)), ("visual.ln_post", (V,), (V,)), ("ln_final", (T,), (T,))),
        **block("visual.transformer.resblocks.0", V), **block("transformer.resblocks.0", T),
    })  # fmt: skip
    beside = {"input_resolution": 14, "context_length": 6, "vocab_size": 9}
    return arrays | {name: np.array(number) for name, number in beside.items()}


def transformers(arrays):
    """Returns OpenAI's tensors as those of transformers' CLIPModel."""
    out = {
        "visual_projection.weight": arrays["visual.proj"].T, "text_projection.weight": arrays["text_projection"].T,
        "logit_scale": arrays["logit_scale"], "text_model.embeddings.position_ids": np.arange(6)[None],
    }  # fmt: skip
    for before, after in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        start, end = f"{before}.resblocks.0.", f"{after}.encoder.layers.0."
        for ours, theirs in BLOCK.items():
            for leaf in ("weight", "bias"):
                out[f"{end}{theirs}.{leaf}"] = arrays[f"{start}{ours}.{leaf}"]
        for leaf in ("weight", "bias"):
            for letter, rows in zip("qkv", np.split(arrays[f"{start}attn.in_proj_{leaf}"], 3)):
                out[f"{end}self_attn.{letter}_proj.{leaf}"] = rows
    for name, array in arrays.items():
        for ours, theirs in FIXED.items():
            if name == ours or name.startswith(f"{ours}."):
                out[theirs + name[len(ours) :]] = array
    return {name: np.array(array, order="C") for name, array in out.items()}


def program(arrays, **more):
    """Returns a TorchScript program with these tensors as attributes of nested modules, and compressed code."""
    root = {}
    for name, tensor in tensors(arrays).items():
        *modules, leaf = name.split(".")
        place = root
        for one in modules:
            place = place.setdefault(one, {})
        place[leaf] = tensor

    def module(contents):
        state = {name: module(one) if isinstance(one, dict) else one for name, one in contents.items()}
        return Call(Global("__torch__.model", "Module"), (), {"training": False, **state, **more})

    return packed(module(root))


def packed(value):
    code = zlib.compress(b"def forward(self): import os")[2:-4]
    name = "archive/code/__torch__.py"
    members = [*torch_members(value), (name, code), ("archive/constants.pkl", b"\x80\x02).")]
    return zip_archive(members, change={name: {"method": 8, "size": 28, "local": {"method": 8}}})


def equal(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == np.float32 and np.array_equal(a, b), one, other)
    )


def test_clip_in_every_layout_gives_the_same_parameters(tmp_path):
    arrays = openai()
    save_file(arrays, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(torch_zip(tensors(arrays)))
    (tmp_path / "ViT-L-14.pt").write_bytes(program(arrays))
    save_file(transformers(arrays), tmp_path / "model.safetensors")
    paths = sorted(tmp_path.iterdir())
    found = [convert.load_clip_pair(path, CLIP) for path in paths]
    assert all(equal(found[0], one) for one in found[1:])
    towers = [convert.load_clip_vision(path, CLIP.vision) for path in paths]
    assert all(equal(found[0]["vision"], one) for one in towers)
    query = found[0]["vision"]["vision_model"]["encoder"]["layers_0"]["self_attn"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(query, arrays["visual.transformer.resblocks.0.attn.in_proj_weight"][:V].T)
    np.testing.assert_array_equal(found[0]["text"]["text_projection"]["kernel"], arrays["text_projection"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visual.transformer.resblocks.1.ln_2.weight": np.ones(V)}, "resblocks.1.ln_2.weight .* is unknown"),
        ({"something": np.ones(2)}, "something .* is unknown"),
        ({"text_projection": np.ones((T, 2))}, "text_projection has the shape .64, 2. instead of .64, 64."),
        ({"ln_final.bias": None, "logit_scale": None}, "2 differences: .*(ln_final.bias|logit_scale) is missing"),
    ],
)
def test_every_difference_of_a_clip_is_named(change, words, tmp_path):
    arrays = {name: array for name, array in (openai() | change).items() if array is not None}
    (tmp_path / "clip.bin").write_bytes(torch_zip(tensors(arrays)))
    with pytest.raises(CheckpointError, match=rf"clip\.bin: it does not hold a small CLIP, with .*{words}"):
        convert.load_clip_pair(tmp_path / "clip.bin", CLIP, "a small CLIP")


def test_another_clip_is_named_in_one_sentence(tmp_path):
    arrays = openai() | {"visual.positional_embedding": np.ones((10, V), np.float32)}
    save_file(arrays, tmp_path / "a.safetensors")
    save_file(transformers(openai()) | {"text_model.encoder.layers.1.layer_norm1.weight": np.ones(T, np.float32)},
              tmp_path / "b.safetensors")  # fmt: skip
    ours = "an image tower of width 128 with 1 blocks, patches of 7 and pictures of {} pixels"
    for load, config in ((convert.load_clip_pair, CLIP), (convert.load_clip_vision, CLIP.vision)):
        with pytest.raises(CheckpointError, match=f"it is another CLIP: {ours.format(21)}.*; it has {ours.format(14)}"):
            load(tmp_path / "a.safetensors", config, "it")
    with pytest.raises(CheckpointError, match="a text tower of width 64 with 2 blocks; it .* with 1 blocks$"):
        convert.load_clip_pair(tmp_path / "b.safetensors", CLIP, "it")


def test_programs_are_data_and_modules_in_modules_end(tmp_path):
    arrays = {"weight": np.ones(3, np.float32)}
    path = tmp_path / "hostile.pt"
    path.write_bytes(program(arrays, danger=Call(Global("os", "system"), ("touch /tmp/owned",))))
    assert [tensor.name for tensor in convert.read(path).lazy()] == ["weight"]  # nothing is called
    path.write_bytes(shared_modules(31))
    with pytest.raises(CheckpointError, match="tensors or modules"):
        convert.read(path)
    path.write_bytes(packed({"a": 1}))
    with pytest.raises(CheckpointError, match="holds no module"):
        convert.read(path)


def shared_modules(depth):
    """Returns a program of few bytes whose modules are a tree of 2^depth: every one has the next one twice."""
    members = torch_members(Call(Global("m", "M"), (), tensors({"weight": np.ones(3, np.float32)})))
    body = dict(members)["archive/data.pkl"][
        2:-1
    ]  # without PROTO and STOP: it leaves the innermost module on the stack
    for level in range(depth):
        memo = 200 + level
        body += b"q" + bytes([memo])  # BINPUT
        body = body + b"0" + b"cm\nM\n)R" + b"}(X\x01\x00\x00\x00ah" + bytes([memo])
        body += b"X\x01\x00\x00\x00bh" + bytes([memo]) + b"ub"
    changed = [(name, b"\x80\x02" + body + b"." if name.endswith("data.pkl") else data) for name, data in members]
    return zip_archive([*changed, ("archive/constants.pkl", b"\x80\x02).")])


D = 64
DINO = {
    "cls_token": (1, 1, D), "pos_embed": (1, 10, D), "patch_embed.proj.weight": (D, 3, 14, 14),
    "patch_embed.proj.bias": (D,), "mask_token": (1, D), "blocks.0.ls1.gamma": (D,), "blocks.0.ls2.gamma": (D,),
    **both(
        ("blocks.0.norm1", (D,), (D,)), ("blocks.0.norm2", (D,), (D,)), ("norm", (D,), (D,)),
        ("blocks.0.attn.qkv", (3 * D, D), (3 * D,)), ("blocks.0.attn.proj", (D, D), (D,)),
    ),
}  # fmt: skip
PLAIN = both(("blocks.0.mlp.fc1", (4 * D, D), (4 * D,)), ("blocks.0.mlp.fc2", (D, 4 * D), (D,)))
GATED = both(("blocks.0.mlp.w12", (352, D), (352,)), ("blocks.0.mlp.w3", (D, 176), (D,)))
DINO_NAMES = (
    ("blocks.0.attn.proj.", "encoder.layer.0.attention.output.dense."),
    ("blocks.0.ls1.gamma", "encoder.layer.0.layer_scale1.lambda1"),
    ("blocks.0.ls2.gamma", "encoder.layer.0.layer_scale2.lambda1"), ("w12.", "weights_in."), ("w3.", "weights_out."),
    ("blocks.", "encoder.layer."), ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("pos_embed", "embeddings.position_embeddings"), ("norm.", "layernorm."),
)  # fmt: skip


def dinov2_of_transformers(arrays):
    out = {}
    for name, array in arrays.items():
        if ".qkv." in name:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3)):
                out[f"encoder.layer.0.attention.attention.{part}.{name.rpartition('.')[2]}"] = rows
        elif name in ("cls_token", "mask_token", "register_tokens"):
            out[f"embeddings.{name}"] = array
        else:
            for theirs, ours in DINO_NAMES:
                name = name.replace(theirs, ours) if name.startswith(theirs) or theirs[0] == "w" else name
            out[name] = array
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("mlp", [PLAIN, GATED], ids=["plain", "gated"])
def test_dinov2_in_both_layouts_gives_the_same_parameters(registers, mlp, tmp_path):
    shapes = DINO | mlp | ({"register_tokens": (1, registers, D)} if registers else {})
    arrays = filled(shapes)
    (tmp_path / "dinov2_pretrain.pth").write_bytes(torch_zip(tensors(arrays)))
    save_file(dinov2_of_transformers(arrays), tmp_path / "model.safetensors")
    (config, one), (same, other) = (convert.load_dinov2(path) for path in sorted(tmp_path.iterdir()))
    assert equal(one, other)
    assert config == same
    assert (config.width, config.layers, config.heads, config.grid, config.registers) == (D, 1, 1, 3, registers)
    assert (config.gated, config.hidden) == ((True, 176) if mlp is GATED else (False, 4 * D))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pos_embed": (1, 1, D)}, "a DINOv2 has a width"),
        ({"pos_embed": (1, 12, D)}, r"pos_embed has the shape \[1, 12, 64\] instead of \[1, 10, 64\]"),
        ({"patch_embed.proj.weight": (65, 3, 14, 14)}, "these are 65, 1 and 0"),
        ({"patch_embed.proj.weight": (D, 3)}, "not of 4 axes"),
        ({"blocks.70.ls1.gamma": (D,)}, "these are 64, 71 and 0"),
        ({"head.weight": (4, D)}, "head.weight .4, 64. is unknown"),
    ],
)
def test_what_is_no_dinov2_is_refused(change, words, tmp_path):
    (tmp_path / "x.pth").write_bytes(torch_zip(tensors(filled(DINO | PLAIN | change))))
    with pytest.raises(CheckpointError, match=words):
        convert.load_dinov2(tmp_path / "x.pth")


def small_inception():
    shapes, out = NETWORKS["inception"].shapes(InceptionConfig(7, 16)), {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *modules, name = (one.key for one in place)
        shape = leaf.shape[::-1][:2] + leaf.shape[:2] if len(leaf.shape) == 4 else leaf.shape[::-1]
        if len(leaf.shape) == 4:
            shape = (leaf.shape[3], leaf.shape[2], *leaf.shape[:2])
        out[".".join([*modules, {"kernel": "weight", "scale": "weight"}.get(name, name)])] = np.ones(shape, np.float32)
    out["Mixed_7c.branch_pool.bn.num_batches_tracked"] = np.array(3)
    return out


def test_inception_is_read_and_torchvisions_is_refused(tmp_path):
    path, arrays = tmp_path / "pt_inception.pth", small_inception()
    path.write_bytes(torch_zip(tensors(arrays)))
    config, _ = convert.load_inception(path)
    assert config == InceptionConfig(7, 16)
    for change, words in (
        ({"AuxLogits.fc.weight": np.ones((7, 3), np.float32)}, "Inception v3 of torchvision"),
        ({"Mixed_8a.conv.weight": np.ones((7, 3), np.float32)}, "Mixed_8a.conv.weight .7, 3. is unknown"),
        ({"fc.weight": np.ones((7, 3), np.float32)}, "fc.weight has the shape"),
        ({"Conv2d_1a_3x3.conv.weight": np.ones(3, np.float32)}, "are not those of FID's"),
    ):
        path.write_bytes(torch_zip(tensors(arrays | change)))
        with pytest.raises(CheckpointError, match=words):
            convert.load_inception(path)


def test_aesthetic_predictor_is_read_and_others_are_refused(tmp_path):
    path = tmp_path / "linearMSE.pth"
    sizes = {0: (1024, 24), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    arrays = filled(both(*((f"layers.{place}", shape, shape[:1]) for place, shape in sizes.items())))
    path.write_bytes(torch_zip(tensors(arrays)))
    config, params = convert.load_aesthetic(path)
    assert config.width == 24
    np.testing.assert_array_equal(params["layers_7"]["kernel"], arrays["layers.7.weight"].T)
    path.write_bytes(torch_zip(tensors(arrays | {"layers.8.weight": np.ones((1, 1), np.float32)})))
    with pytest.raises(CheckpointError, match="layers.8.weight .* is unknown"):
        convert.load_aesthetic(path)
