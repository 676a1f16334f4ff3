"""LPIPS's weights and discriminators out of the files that they are published in, and what is refused."""

import autoencoder_peer as peer
import checkpoint_writer
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax import convert
from sdjax.convert import CheckpointError

WANTED = ("vgg16-397923af.pth", "weights/v0.1/vgg.pth", "autoencoder.lpips")  # what an error tells to get, and where


@pytest.fixture(scope="module")
def case():
    """Returns (parameters, VGG16's tensors with a classifier of any size, LPIPS's) as in the published files."""
    tree, tensors = peer.lpips_case()
    vgg = {name: array for name, array in tensors.items() if name.startswith("features.")}
    vgg |= {f"classifier.{i}.{leaf}": np.zeros(3, np.float32) for i in (0, 3, 6) for leaf in ("weight", "bias")}
    return tree, vgg, {name: array for name, array in tensors.items() if name.startswith("lin")}


def equal(got, want):
    return jax.tree.structure(got) == jax.tree.structure(want) and jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == np.float32 and np.array_equal(a, b), got, want)
    )


def whole(vgg, lines, prefix=""):
    """Returns an LPIPS module's tensors, as CompVis's code names them."""
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    named = dict(lines)
    for name, array in vgg.items():
        if name.startswith("features."):
            _, number, leaf = name.split(".")
            named[f"net.slice{slices[int(number)]}.{number}.{leaf}"] = array
    named |= {f"scaling_layer.{name}": np.zeros((1, 3, 1, 1), np.float32) for name in ("shift", "scale")}
    return {prefix + name: array for name, array in named.items()}


def judge(prefix=""):
    """Returns a discriminator's tensors, with its norms' averages."""
    tensors = dict(peer.discriminator_case()[1])
    for number in (3, 6, 9):
        tensors[f"main.{number}.running_mean"] = tensors[f"main.{number}.running_var"] = np.ones(4, np.float32)
        tensors[f"main.{number}.num_batches_tracked"] = np.array(7)
    return {prefix + name: array for name, array in tensors.items()}


def test_two_files_in_either_order(case, tmp_path):
    tree, vgg, lines = case
    save_file(vgg, tmp_path / "vgg16.safetensors")
    (tmp_path / "vgg.pth").write_bytes(checkpoint_writer.torch_legacy(checkpoint_writer.tensors(lines)))
    files = tmp_path / "vgg16.safetensors", str(tmp_path / "vgg.pth")
    assert equal(convert.load_lpips(*files), tree)
    assert equal(convert.load_lpips(*files[::-1]), tree)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])  # torchvision's and lpips's files are from before torch's zips
def test_files_of_torch(case, tmp_path, zipped):
    import torch

    for name, tensors in ("vgg16-397923af.pth", case[1]), ("vgg.pth", case[2]):
        tensors = {key: torch.tensor(array) for key, array in tensors.items()}
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert equal(convert.load_lpips(tmp_path / "vgg16-397923af.pth", tmp_path / "vgg.pth"), case[0])


def test_a_whole_module_and_one_without_dropout(case):
    tree, vgg, lines = case
    assert equal(convert.load_lpips(whole(vgg, lines)), tree)
    plain = {name.replace("model.1", "model.0"): array for name, array in lines.items()}
    again = {
        f"lins.{name[3]}.model.0.weight": array for name, array in lines.items()
    }  # the lpips package's list of them
    assert equal(convert.load_lpips(whole(vgg, {**plain, **again})), tree)


def test_an_autoencoders_training_checkpoint_holds_everything(case, tmp_path):
    tensors = {"encoder.conv_in.weight": np.zeros((1, 3, 3, 3), np.float32), "loss.logvar": np.float32(0)}
    tensors |= whole(*case[1:], "loss.perceptual_loss.") | judge("loss.discriminator.")
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    path = tmp_path / "model.ckpt"
    path.write_bytes(checkpoint_writer.torch_zip(checkpoint_writer.training_checkpoint(tensors)))
    assert equal(convert.load_lpips(path), case[0])
    assert equal(convert.load_discriminator(path), peer.discriminator_case()[0])


def test_halves_become_float32(case):
    tree, vgg, lines = case
    halves = [{name: array.astype(np.float16) for name, array in part.items()} for part in (vgg, lines)]
    rounded = jax.tree.map(lambda a: np.asarray(a).astype(np.float16).astype(np.float32), tree)
    assert equal(convert.load_lpips(*halves), rounded)


def test_without_files_it_says_which_two_and_where_from(case, tmp_path):
    with pytest.raises(CheckpointError) as error:
        convert.load_lpips()
    assert all(text in str(error.value) for text in (*WANTED, "autoencoder.perceptual_weight to 0"))
    save_file(case[2], tmp_path / "lines.safetensors")
    with pytest.raises(CheckpointError, match="vgg16.pth: there is no such file") as error:
        convert.load_lpips(tmp_path / "lines.safetensors", tmp_path / "vgg16.pth")
    assert all(text in str(error.value) for text in WANTED)
    with pytest.raises(CheckpointError, match="VGG16's convolutions are in none of the files given") as error:
        convert.load_lpips(tmp_path / "lines.safetensors")
    assert all(text in str(error.value) for text in WANTED)


def test_all_differences_of_both_files_are_told_at_once(case, tmp_path):
    vgg, lines = dict(case[1]), dict(case[2])
    vgg["features.3.weight"] = vgg.pop("features.2.weight")
    vgg["features.5.bias"] = vgg["features.5.bias"][:3]
    vgg["features.7.bias"] = np.arange(128)
    lines["lin4.model.1.weight"] = lines["lin4.model.1.weight"][:, :7]
    save_file(vgg, tmp_path / "vgg16.safetensors")
    save_file(lines, tmp_path / "lines.safetensors")
    with pytest.raises(CheckpointError) as error:
        convert.load_lpips(tmp_path / "vgg16.safetensors", tmp_path / "lines.safetensors")
    for text in (
        "vgg16.safetensors: it does not hold VGG16's convolutions, with 4 differences",
        "features.2.weight is missing",
        "features.3.weight [64, 64, 3, 3] is unknown",
        "features.5.bias has the shape [3] instead of [128]",
        "'features.7.bias' holds int64 numbers",
        "lines.safetensors: it does not hold LPIPS's own weights, with 1 difference",
        "lin4.model.1.weight has the shape [1, 7, 1, 1] instead of [1, 512, 1, 1]",
    ):
        assert text in str(error.value)


def test_a_part_given_twice_and_a_file_of_something_else_are_refused(case):
    _, vgg, lines = case
    with pytest.raises(CheckpointError, match="LPIPS's own weights are in 2 of the files given"):
        convert.load_lpips(vgg, lines, lines)
    with pytest.raises(CheckpointError, match="it holds nothing of LPIPS"):
        convert.load_lpips(vgg, lines, {"unet": np.ones(3, np.float32)})


def test_a_discriminator_of_its_own_file_and_what_is_none(case):
    assert equal(convert.load_discriminator(judge()), peer.discriminator_case()[0])
    with pytest.raises(CheckpointError, match="holds no discriminator: none of its tensors is named loss.discrim"):
        convert.load_discriminator(case[2])
    deeper = {**judge(), "main.12.weight": np.ones(3, np.float32)}
    del deeper["main.6.bias"]
    with pytest.raises(CheckpointError, match=r"2 differences: main.6.bias is missing; main.12.weight .3. is unknown"):
        convert.load_discriminator(deeper)
