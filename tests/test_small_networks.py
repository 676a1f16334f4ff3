"""TAESD and the ESRGAN family: the references' numbers, every layout of their files, tiles without seams, their use.

golden/small_networks.npz holds outputs of the original taesd.py, diffusers' AutoencoderTiny and spandrel on weights of
`reference.fill`.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import jit
from safetensors.numpy import save_file

import sdjax
from sdjax import convert, pictures
from sdjax.convert import CheckpointError
from sdjax.convert.names.naming import torch_name
from sdjax.convert.parts.esrgan import LoadedESRGAN
from sdjax.nn.esrgan import CompactConfig, RRDBConfig, pixel_shuffle, pixel_unshuffle
from sdjax.nn.networks import NETWORKS
from sdjax.nn.taesd import TinyAutoencoder
from sdjax.pictures import image
from sdjax.pipeline.enlarging import enlarge_image, windows
from sdjax.scripts.main import main
from sdjax.tasks.enlarge import enlarge_to

import models
from reference import fill, golden

GOLDEN = golden("small_networks")
CASES = {case["id"]: case for case in json.loads(GOLDEN["spec"].tobytes())}


def tensors_of(name):
    """Returns the state dict of a case: of an entry [shape, type, scale] or [shape, type, "const", number]."""
    case = CASES[name]
    made = {}
    for key, (shape, _, scale, *rest) in case["tensors"].items():
        made[key] = np.full(shape, rest[0], np.float32) if scale == "const" else None
        if made[key] is None:
            x = fill(key, tuple(shape), case["seed"]) * np.float32(scale)
            made[key] = np.float32(rest[0]) + np.abs(x) if rest else x
    return made


def apart(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["decode_diffusers", "encode"])
def test_taesd_gives_the_references_numbers(name):
    loaded = convert.load_taesd(tensors_of(name))
    x = jnp.moveaxis(jnp.asarray(GOLDEN[f"{name}/in"]), 1, -1)
    method = name.partition("_")[0]
    run = jit(lambda params, x: TinyAutoencoder(loaded.config).apply({"params": params}, x, method=method))
    got = np.moveaxis(np.asarray(run(loaded.params, x)), -1, 1)
    want = GOLDEN[f"{name}/out"]
    assert apart(got[:, : want.shape[1]], want) < 2e-5  # measured 4e-6: float32 sums in another order


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ["realesrgan_x2_unshuffle", "old_x1", "compact_small", "old_x4", "new_x4"])
def test_upscalers_give_the_references_numbers(name):
    loaded = convert.load_esrgan(tensors_of(name))
    got = enlarge_image(loaded, np.moveaxis(GOLDEN[f"{name}/in"][0], 0, -1))
    assert apart(np.moveaxis(got, -1, 0), GOLDEN[f"{name}/out"][0]) < 2e-5


def test_the_three_layouts_of_rrdbnet_hold_the_same_network(tmp_path):
    real = {name.removeprefix("params."): array for name, array in tensors_of("realesrgan_x2_unshuffle").items()}
    numbers = {"conv_first": "model.0", "conv_up1": "model.3", "conv_up2": "model.6", "conv_hr": "model.8",
               "conv_last": "model.10", "conv_body": "model.1.sub.2"}  # fmt: skip
    names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up1": "upconv1", "conv_up2": "upconv2"}

    def old(name):
        if name.startswith("body."):
            block, dense, conv, leaf = name.removeprefix("body.").split(".")
            return f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{leaf}"
        return f"{numbers[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}"

    def new(name):
        module, _, leaf = name.rpartition(".")
        return f"{names.get(module, module.replace('body.', 'RRDB_trunk.').replace('rdb', 'RDB'))}.{leaf}"

    wanted = convert.load_esrgan(real)
    for rename in (old, new, "params.{}".format):
        read = convert.load_esrgan({rename(name): array for name, array in real.items()})
        assert read.config == wanted.config == RRDBConfig(channels=16, num_blocks=2, unshuffle=2)
        assert same_trees(read.params, wanted.params)
    averaged = {f"params_ema.{name}": array for name, array in real.items()}
    both = {**{f"params.{name}": 0 * array for name, array in real.items()}, **averaged}
    assert same_trees(convert.load_esrgan(both).params, wanted.params)


def same_trees(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_trees(one[key], other[key]) for key in one)
    return np.array_equal(one, other)


@pytest.mark.slow
def test_released_networks_have_their_sizes():
    # RealESRGAN_x4plus and realesr-general-x4v3, by counting the tensors that BasicSR's classes make
    count = lambda name, config: sum(leaf.size for leaf in leaves(NETWORKS[name].shapes(config)))  # noqa: E731
    assert count("rrdb", RRDBConfig()) == 16_697_987
    assert count("compact", CompactConfig()) == 1_213_296
    tiny = convert.load_taesd(tensors_of("decode_diffusers")).config
    assert count("vae", tiny) == 2_445_063  # diffusers' AutoencoderTiny


def leaves(tree):
    return [leaf for one in tree.values() for leaf in leaves(one)] if hasattr(tree, "values") else [tree]


def small_upscaler():
    config = RRDBConfig(channels=8, growth=4, num_blocks=2, doublings=1)
    return LoadedESRGAN(config, models.fill_tree(NETWORKS["rrdb"].shapes(config)))


def test_tiles_leave_no_seams():
    image = np.random.default_rng(0).random((70, 61, 3), np.float32)
    upscaler = small_upscaler()
    whole, tiled = (enlarge_image(upscaler, image, tile=tile) for tile in (512, 16))
    assert whole.shape == (140, 122, 3)
    assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()  # sums of other shapes; a seam would be 1e-2
    parts = [enlarge_image(upscaler, image[:35]), enlarge_image(upscaler, image[35:])]
    assert np.abs(np.concatenate(parts) - whole).max() > 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize(("name", "times"), [("3x_old", 3), ("old_x3", 3), ("x2_13x", 2), ("old", 2)])
def test_the_name_tells_three_times_from_two(tmp_path, name, times):
    upscaler = small_upscaler()
    tensors = {
        torch_name(path): np.asarray(leaf).transpose(3, 2, 0, 1) if np.ndim(leaf) == 4 else np.asarray(leaf)
        for path, leaf in flatten_dict(upscaler.params, sep="/").items()
    }
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / f"{name}.safetensors")
    loaded = convert.load_esrgan(tmp_path / f"{name}.safetensors")
    assert loaded.config.times == times
    assert enlarge_image(loaded, np.zeros((9, 9, 3), np.float32)).shape == (9 * times, 9 * times, 3)


def test_windows_have_one_shape_and_cover_the_map_with_their_margins():
    covered = np.zeros((70, 61), int)
    found = list(windows((70, 61), 16, 5))
    for one in found:
        covered[one.inner] += 1
        for outer, inner, side in zip(one.outer, one.inner, covered.shape):
            assert outer.stop - outer.start == 26
            assert outer.start == 0 or inner.start - outer.start >= 5
            assert outer.stop == side or outer.stop - inner.stop >= 5
    assert covered.min() >= 1


def test_pixel_shuffle_is_undone_and_in_pytorchs_order():
    x = jnp.arange(2 * 3 * 12.0).reshape(1, 2, 3, 12)
    shuffled = pixel_shuffle(x, 2)
    assert np.array_equal(pixel_unshuffle(shuffled, 2), x)
    # torch's definition: out[c, 2 i + a, 2 j + b] = in[4 c + 2 a + b, i, j]
    assert shuffled[0, 3, 4, 2] == x[0, 1, 2, 4 * 2 + 2 * 1 + 0]


def test_another_factor_runs_the_upscaler_until_the_picture_is_large_enough():
    picture = np.random.default_rng(1).integers(0, 256, (12, 10, 3), np.uint8)
    upscaler = small_upscaler()
    assert enlarge_to(upscaler, picture, (36, 30)).shape == (36, 30, 3)
    (twice,) = sdjax.enlarge(upscaler, picture)
    assert np.array_equal(enlarge_to(upscaler, picture, (24, 20)), twice)
    thrice = enlarge_to(upscaler, twice, (36, 30))
    assert np.array_equal(enlarge_to(upscaler, picture, (36, 30)), thrice)


def test_a_seamless_picture_stays_seamless():
    picture = np.random.default_rng(2).integers(0, 256, (12, 10, 3), np.uint8)
    upscaler = small_upscaler()
    made = enlarge_to(upscaler, picture, (24, 20), seamless="x")
    moved = enlarge_to(upscaler, np.roll(picture, 5, axis=1), (24, 20), seamless="x")
    assert np.abs(np.roll(made, 10, axis=1).astype(int) - moved).max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"conv_extra.weight": np.zeros(3, np.float32)}, "conv_extra.weight.* is unknown"),
        (lambda t: {k: v for k, v in t.items() if k != "conv_body.bias"}, "conv_body.bias is missing"),
        (lambda t: t | {"conv_hr.bias": np.zeros(7, np.float32)}, r"conv_hr.bias has the shape \[7\]"),
        (lambda t: t | {"conv_first.weight": np.zeros((16, 4, 3, 3), np.float32)}, "takes 4 channels"),
        (lambda t: {"x": np.zeros(2, np.float32)}, "holds no upscaler"),
    ],
)
def test_every_difference_of_an_upscaler_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        convert.load_esrgan(change(tensors_of("realesrgan_x2_unshuffle")))


def test_wrong_taesds_are_refused_with_what_to_do():
    tensors = tensors_of("decode_diffusers")
    other = tensors | {"decoder.layers.0.weight": np.zeros((64, 16, 3, 3), np.float32)}
    with pytest.raises(CheckpointError, match="its latents have 16 channels"):
        convert.load_taesd(other)
    with pytest.raises(CheckpointError, match=r"decoder.layers.7.conv.9.weight .* is unknown"):
        convert.load_taesd(tensors | {"decoder.layers.7.conv.9.weight": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="holds no TAESD"):
        convert.load_taesd({"x": np.zeros(2, np.float32)})


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    """Returns the path of a file with a narrow TAESD in diffusers' names."""
    shapes = {name: shape for name, (shape, *_) in CASES["decode_diffusers"]["tensors"].items()}
    shapes = {name: tuple(8 if side == 64 else side for side in shape) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("taesd") / "taesd.safetensors"
    save_file({name: fill(name, shape) for name, shape in shapes.items()}, path)
    return path


def test_taesd_replaces_an_autoencoder_and_is_written_with_the_model(taesd, tmp_path):
    models.pipeline().save(tmp_path / "model")
    pipe = sdjax.load(tmp_path / "model", vae=taesd, dtype="float32")
    latent = jnp.ones([1, 2, 2, 4])
    loaded = convert.load_taesd(taesd)
    decode = lambda x: TinyAutoencoder(loaded.config).apply({"params": loaded.params}, x, method="decode")  # noqa: E731
    wanted = decode(latent)
    assert np.allclose(pipe.decode(latent), wanted, atol=1e-5)
    for name, layout in ("again", "diffusers"), ("one.safetensors", "ldm"):
        pipe.save(tmp_path / name, to=layout)
        assert np.allclose(sdjax.load(tmp_path / name, dtype="float32").decode(latent), wanted, atol=1e-5)


@pytest.mark.slow  # compiles networks
def test_previews_by_taesd_have_the_full_size(taesd):
    seen = []
    pipe = models.pipeline()
    options = {"num_steps": 6, "guidance_scale": 1, "on_step": lambda step: seen.append(step.preview())}
    sdjax.text_to_image(pipe, "a cat", taesd=taesd, **options)
    sdjax.text_to_image(pipe, "a cat", **options)
    assert [one.shape for one in seen] == [(1, 64, 64, 3)] * 2 + [(1, 8, 8, 3)] * 2
    with pytest.raises(ValueError, match="taesd is a file"):
        sdjax.text_to_image(pipe, "a cat", taesd=3)


@pytest.mark.slow
def test_an_upscaler_enlarges_between_two_passes(monkeypatch):
    pipe, options = models.pipeline(), {"num_steps": 2, "guidance_scale": 1}
    upscaler, seen = small_upscaler(), []

    def noting(network, picture, size, **more):
        seen.append((network, picture, size))
        return enlarge_to(network, picture, size, **more)

    monkeypatch.setattr("sdjax.tasks.two_pass.enlarge_to", noting)
    made = sdjax.two_pass(pipe, "a cat", upscaler=upscaler, enlarge=2, **options)
    ((network, picture, size),) = seen
    assert network is upscaler
    assert size == (128, 128)
    assert made.shape == (1, 128, 128, 3)
    first = sdjax.text_to_image(pipe, "a cat", **options)[0]
    assert np.abs(picture.astype(int) - first).max() <= 1
    plain = sdjax.two_pass(pipe, "a cat", enlarge=2, **options)
    assert np.abs(plain.astype(int) - made).max() > 1


def test_an_upscaler_of_two_passes_is_checked_before_the_first():
    pipe = models.pipeline()
    with pytest.raises(ValueError, match="either upscale or upscaler"):
        sdjax.two_pass(pipe, "a cat", upscaler=small_upscaler(), upscale="bicubic")
    with pytest.raises(ValueError, match="an upscaler is a file"):
        sdjax.two_pass(pipe, "a cat", upscaler=3)


def test_the_command_enlarges_a_folder_and_refuses_flags_without_effect(tmp_path, capsys):
    save_file(tensors_of("compact_small"), tmp_path / "small.safetensors")
    (tmp_path / "in").mkdir()
    for i, size in enumerate(((8, 6), (5, 9))):
        image.save_png(tmp_path / "in" / f"{i}.png", np.full((*size, 3), 90, np.uint8))
    command = ["upscale", "--model", str(tmp_path / "small.safetensors"), "--init-img", str(tmp_path / "in"),
               "--outdir", str(tmp_path / "out"), "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    paths = capsys.readouterr().out.split()
    assert [pictures.open_picture(path).pixels.shape for path in paths] == [(16, 12, 3), (10, 18, 3)]
    assert main([*command, "--prompt", "a cat"]) == 2
    assert "--prompt has no effect" in capsys.readouterr().err
    assert main([*command, "--times", "40"]) == 2
    assert main([*command[:2], str(tmp_path / "in" / "0.png"), *command[3:]]) == 3
