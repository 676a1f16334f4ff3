"""Measures, resizing and files against pytorch-fid, clean-fid, torch-fidelity and open_clip."""

import functools

import jax
import judges_peer
import numpy as np
import pytest

from sdjax.evaluate import distances, resizing, statistics
from sdjax.evaluate.extractors import load_extractor
from sdjax.pipeline import placement

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
RNG = np.random.default_rng(7)
X, Y = RNG.standard_normal((300, 40)), RNG.standard_normal((280, 40)) * 1.2 + 0.1
PICTURES = [RNG.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((512, 512), (300, 420), (97, 64), (299, 299))]
SIZES = range(len(PICTURES))


def chw(picture):
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # pytorch-fid calls SciPy with it
@pytest.mark.parametrize("rows", [300, 60])
def test_frechet_equals_pytorch_fids(rows):
    score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = X[:rows], Y[:rows]
    want = score.calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert distances.frechet(x, y) == pytest.approx(want, rel=1e-9)  # both float64
    to = distances.frechet_to_statistics(y.mean(0), np.cov(y, rowvar=False))
    assert to(x) == pytest.approx(want, rel=1e-9)


def test_statistics_go_to_pytorch_fid_and_back(tmp_path):
    score = pytest.importorskip("pytorch_fid.fid_score")
    statistics.save_statistics(tmp_path / "a.npz", *distances.mean_and_covariance(X))
    mean, covariance = score.compute_statistics_of_path(str(tmp_path / "a.npz"), None, 1, 40, "cpu")
    np.testing.assert_array_equal(mean, X.mean(0))
    np.savez_compressed(tmp_path / "b.npz", mu=mean, sigma=covariance)  # as its --save-stats
    for got, want in zip(statistics.read_statistics(tmp_path / "b.npz"), (mean, covariance)):
        np.testing.assert_array_equal(got, want)


def test_kernel_distance_equals_clean_fids():
    fid = pytest.importorskip("cleanfid.fid")
    want = fid.kernel_distance(X[:280], Y, num_subsets=1)  # the whole sets, in any order
    assert distances.kernel_distance(X[:280], Y) == pytest.approx(want, rel=1e-9)


def test_precision_recall_and_inception_score_equal_torch_fidelitys():
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    from torch_fidelity.metric_isc import isc_features_to_metric

    want = prc.calculate_precision_recall_full(torch.from_numpy(X), torch.from_numpy(Y))
    got = distances.precision(X, Y), distances.recall(X, Y)
    assert got == pytest.approx(want, abs=1e-6)  # shares of float32
    want = isc_features_to_metric(torch.from_numpy(3 * X[:297]), shuffle=False)["inception_score_mean"]
    assert distances.inception_score(3 * X[:297]) == pytest.approx(want, rel=1e-9)


def test_cmmd_equals_its_definition():
    x, y = (torch.nn.functional.normalize(torch.from_numpy(a)) for a in (X, Y))
    kernels = [torch.exp(-(torch.cdist(a, b) ** 2) / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert distances.cmmd(X, Y) == pytest.approx(1000 * float(kernels[0] + kernels[1] - 2 * kernels[2]), rel=1e-6)


@pytest.mark.parametrize("which", SIZES)
def test_the_three_ways_of_resizing_for_inception(which):
    picture = PICTURES[which]
    want = torch.nn.functional.interpolate(chw(picture) / 255, (299, 299), mode="bilinear", align_corners=False)
    want = (2 * want - 1)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(resizing.inception_pytorch(picture), want, atol=1e-4)  # torch has places in float32
    interpolate = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    want = interpolate.interpolate_bilinear_2d_like_tensorflow1x(chw(picture).float(), (299, 299), align_corners=False)
    want = ((want - 128) / 128)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(resizing.inception_tensorflow(picture), want, atol=1e-5)
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    np.testing.assert_array_equal(resizing.inception_clean(picture), (resize(picture) - 128) / np.float32(128))


@pytest.mark.parametrize("which", SIZES)
def test_clips_pictures_equal_open_clips(which):
    open_clip = pytest.importorskip("open_clip")
    from PIL import Image

    want = open_clip.image_transform(224, is_train=False)(Image.fromarray(PICTURES[which]))
    np.testing.assert_allclose(resizing.clip(PICTURES[which]), want.numpy().transpose(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize("which", SIZES)
def test_dinov2s_pictures_equal_dgm_evals(which):
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    prepare = transforms.Compose([
        transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    want = prepare(Image.fromarray(PICTURES[which])).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(resizing.dinov2(PICTURES[which]), want, atol=1e-5)


def test_pictures_to_features_equal_pytorch_fids_and_torch_fidelitys(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "make_mesh", functools.partial(placement.make_mesh, jax.local_devices()[:1]))
    fid = pytest.importorskip("pytorch_fid.inception")
    network = judges_peer.fid_inception()
    path = tmp_path / "pt_inception.pth"
    torch.save(network.state_dict(), path)
    captions = [""] * len(PICTURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "fid_inception_v3", lambda: network)
        reference = fid.InceptionV3()
    got = load_extractor("inception", {"inception": path})(PICTURES, captions)["pool"]
    with torch.no_grad():
        want = np.concatenate([reference(chw(one) / 255)[0][:, :, 0, 0].numpy() for one in PICTURES])
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    # TensorFlow's resizing
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    reference = module.FeatureExtractorInceptionV3("own", ["2048", "logits_unbiased"], str(path))
    got = load_extractor("inception-tensorflow", {"inception": path})(PICTURES, captions)
    with torch.no_grad():
        pairs = [reference(chw(one)) for one in PICTURES]
    for name, want in zip(("pool", "logits"), zip(*pairs)):
        want = np.concatenate([one.numpy() for one in want])
        assert np.abs(got[name] - want).max() < 1e-4 * np.abs(want).max()
