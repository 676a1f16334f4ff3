"""Annotators, against controlnet_aux 0.0.10: the networks on small widths, poses from maps to the drawn picture.

golden/annotators.npz holds the results of its classes whose channels were made fewer, with the weights of `weight`.
golden/poses.npz holds what its OpenposeDetector draws of the maps in tests/pose_maps.py.
"""

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax import convert, pictures
from sdjax.convert import CheckpointError, LoadedAnnotator
from sdjax.convert.names.tables import network_table
from sdjax.nn.annotators.hed import HEDConfig
from sdjax.nn.annotators.lineart import LineartConfig
from sdjax.nn.annotators.pose import PoseConfig
from sdjax.nn.networks import NETWORKS
from sdjax.pictures import image
from sdjax.pictures.hints import PLAIN, people, poses
from sdjax.preprocessors import ANNOTATORS, PREPROCESSORS
from sdjax.scripts.main import main
from sdjax.tasks import annotators
from sdjax.tasks.hints import load_annotators

from tests import pose_maps

GOLDEN = np.load(Path(__file__).parent / "golden" / "annotators.npz")
POSES = np.load(Path(__file__).parent / "golden" / "poses.npz")
INPUT = GOLDEN["input"][0]  # [24, 32, 3], -0.5 to 0.5
WIDTHS = (2, 2, 3, 4)
BODY = PoseConfig((38, 19), WIDTHS, 2, 4)
SMALL = {  # kinds: the network in sdjax.nn.parts, a small description, what the network is given
    "hed": ("hed", HEDConfig((2, 2, 3, 4, 4)), (INPUT + 0.5) * 255),
    "lineart": ("lineart", LineartConfig(4, 2), INPUT + 0.5),
    "body": ("pose", BODY, INPUT),
    "hand": ("pose", dataclasses.replace(BODY, maps=(22,)), INPUT),
    "face": ("pose", dataclasses.replace(BODY, maps=(71,)), INPUT),
}
PICTURE = np.random.default_rng(0).integers(0, 256, [40, 52, 3], dtype=np.uint8)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    is_small = len(shape) == 1 or shape[0] == shape[-1] == shape[-2] == 1
    scale = 0.1 if is_small else (2 / np.prod(shape[1:])) ** 0.5
    return (np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape) * scale).astype(np.float32)


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a small annotator under the names of its released file."""
    network, config, _ = SMALL[kind]
    entries = network_table("network", NETWORKS[network].shapes(config), "", str, "$^").entries
    return {entry.name: weight(entry.name, entry.shape) for entry in entries}


@pytest.mark.parametrize("kind", ["lineart", "hed", "body", "hand", pytest.param("face", marks=pytest.mark.slow)])
def test_a_network_is_that_of_controlnet_aux(kind):
    network, config, given = SMALL[kind]
    loaded = convert.load_annotator(tensors_of(kind))
    assert (loaded.kind, loaded.config) == (kind, config)
    made = annotators._run(network, loaded, given.astype(np.float32))
    made = made if isinstance(made, list | tuple) else [made]
    expected = [GOLDEN[f"{kind}{i}"] if f"{kind}{i}" in GOLDEN else GOLDEN[kind] for i in range(len(made))]
    for one, other in zip(made, expected, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())  # float32 sums


@pytest.mark.parametrize("kind", SMALL)
def test_a_released_file_has_these_names_and_shapes(kind):
    network, config, _ = SMALL[kind]
    first, last, count, parameters = {  # counted in the classes of controlnet_aux
        "hed": ("norm", "block5.projection.weight", 37, 14716168),
        "lineart": ("model0.1.weight", "model4.1.bias", 24, 4290945),
        "body": ("conv1_1.weight", "Mconv7_stage6_L2.bias", 184, 52311446),
        "hand": ("conv1_1.weight", "Mconv7_stage6.bias", 104, 36832324),
        "face": ("conv1_1.weight", "Mconv7_stage6.bias", 104, 38425706),
    }[kind]
    released = type(config)(config.maps) if network == "pose" else type(config)()
    shapes = NETWORKS[network].shapes(released)
    entries = network_table("network", shapes, "", str, "$^").entries
    names = {entry.name for entry in entries}
    assert {first, last} <= names
    assert (len(entries), sum(int(np.prod(entry.shape)) for entry in entries)) == (count, parameters)


@pytest.fixture
def ideal(monkeypatch):
    """Returns networks of poses that see what pose_maps describes."""

    def run(network, loaded, picture):
        rows, columns = picture.shape[0] // 8, picture.shape[1] // 8
        if loaded.kind == "body":
            made = pose_maps.body_maps(rows, columns)
        else:
            made = ((pose_maps.hand_maps if loaded.kind == "hand" else pose_maps.face_maps)(rows, columns),)
        return tuple(one[None] for one in made)

    monkeypatch.setattr(annotators, "_run", run)
    return {kind: LoadedAnnotator(kind, SMALL[kind][1], {}) for kind in ("body", "hand", "face")}


@pytest.mark.parametrize("name", ["openpose", "openpose_full", "openpose_faceonly"])
@pytest.mark.parametrize(
    ("ending", "size"), [("", (192, 256)), pytest.param("_large", (448, 320), marks=pytest.mark.slow)]
)
def test_poses_are_found_and_drawn_as_by_controlnet_aux(name, ending, size, ideal):
    networks = [ideal[kind] for kind in PREPROCESSORS[name].needs]
    made = sdjax.make_hint(np.zeros([*size, 3], np.uint8), name, annotators=networks)
    expected = POSES[name + ending]
    assert expected.any()
    assert (made == expected).all()


def test_the_strongest_peaks_are_kept_of_many():
    values = np.zeros([260, 260])
    values[9::20, 9::20] = heights = np.linspace(20, 60, 169).reshape(13, 13)  # too far apart to meet when blurred
    found = people._peaks(values)
    assert sorted(found[:, 2]) == sorted(heights.ravel())[-people.MOST :]


def test_crowds_are_bounded():
    """Forty people, drawn as perfect maps of joints and limbs of four joints each: the surest are kept."""
    names, count = (1, 2, 3, 4), 40  # neck and right arm
    at = np.array([[12 + 24 * (i % 8), 12 + 24 * (i // 8)] for i in range(count)])
    joints, fields = np.zeros([18, 140, 220]), np.zeros([38, 140, 220])
    for step, name in enumerate(names):
        for i, (x, y) in enumerate(at):
            joints[name, y, x + 3 * step] = 60 + i
    for limb, field in zip(people.LIMBS, people.FIELDS):
        if set(limb) <= set(names):
            fields[field] = 1.0
    found = people.find_people(joints.__getitem__, fields.__getitem__)
    assert len(found) == people.MOST_PEOPLE
    necks = {tuple(one[1]) for one in found}
    assert necks == {tuple(place) for place in at[-people.MOST_PEOPLE :].astype(float)}


def test_hands_and_faces_are_those_of_the_largest_bodies():
    bodies = [np.full([18, 2], np.nan) for _ in range(3)]
    for side, body in zip((10, 30, 20), bodies):
        body[[1, 2]] = [[0, 0], [side, side]]
    assert poses.largest(bodies, 2) == {1, 2}
    assert poses.largest(bodies[:1], 2) == {0}


def test_hands_and_faces_are_looked_for_where_the_body_shows_them():
    body = np.full([18, 2], np.nan)
    assert poses.hand_boxes(body, 100, 100) == []
    assert poses.face_box(body, 100, 100) is None
    body[[2, 3, 4]] = [[10, 50], [40, 50], [70, 50]]  # an arm straight to the right, 30 pixels each
    assert poses.hand_boxes(body, 200, 200) == [pictures.Box(57, 27, 102, 72)]  # 70 + 9.9 - 22.5; 1.5 x 30 wide
    body[[0, 14]] = [[50, 60], [40, 55]]  # the eye is 10 pixels from the nose: half a face is 30
    assert poses.face_box(body, 200, 200) == pictures.Box(20, 30, 80, 90)
    body[[0, 14]] = [[2, 2], [1, 2]]  # six pixels are too few
    assert poses.face_box(body, 200, 200) is None


DEPTH = {"depth": LoadedAnnotator("depth", None, {})}


def ramp(network, loaded, given):  # a depth that rises by 2 to the right
    return np.arange(given.shape[1], dtype=np.float32)[None, None, :, None].repeat(given.shape[0], 1) * 2


def test_depth_is_white_where_it_is_near(monkeypatch):
    monkeypatch.setattr(annotators, "_run", ramp)
    made = annotators.depth(DEPTH, PICTURE)
    assert (made == np.trunc(np.arange(52) * 2 / 102 * 255)[None, :, None]).mean() > 0.99
    monkeypatch.setattr(annotators, "_run", lambda *given: np.ones([1, 64, 64, 1], np.float32))
    assert not annotators.depth(DEPTH, PICTURE).any()


def test_normals_of_a_plane_are_its_slope(monkeypatch):
    monkeypatch.setattr(annotators, "_run", ramp)
    made = annotators.normal(DEPTH, PICTURE, background=0.1, strength=8.0)
    slope = 8 * 2  # Sobel's kernel of a ramp of 2 a pixel
    x, z = slope / np.hypot(slope, 8), 8 / np.hypot(slope, 8)
    expected = np.trunc(np.array([z, 0, x]) * 127.5 + 127.5)
    assert (made[:, 10:-1] == expected).all()
    assert (made[:, 1:5] == (255, 127, 127)).all()  # too far away


@pytest.mark.parametrize("name", ["softedge_hed", "softedge_hedsafe", "scribble_hed", "lineart_realistic"])
def test_a_hint_of_a_network_has_the_pictures_size(name):
    kind = PREPROCESSORS[name].needs[0]
    made = sdjax.make_hint(PICTURE[:24, :31], name, annotators=tensors_of(kind))
    assert made.shape == (24, 31, 3)
    if name == "softedge_hedsafe":
        assert set(np.unique(made)) <= {0, 127, 255}


def test_annotators_of_no_kind_are_refused():
    with pytest.raises(ValueError, match="annotators are files or loaded annotators; got 5"):
        load_annotators.__wrapped__("softedge_hed", 5)  # the tests' check of types would come first


def test_a_picture_that_is_too_large_for_a_network_is_refused():
    large = np.broadcast_to(np.uint8(0), (3000, 3000, 3))
    with pytest.raises(ValueError, match=r"at most; got a picture of 3000 x 3000: give a \(smaller\) resolution"):
        sdjax.make_hint(large, "lineart_realistic", annotators=tensors_of("lineart"))


def test_every_preprocessor_has_a_function_and_known_networks():
    assert list(PREPROCESSORS) == [*PLAIN, *annotators.NETWORK_HINTS]
    assert {kind for one in PREPROCESSORS.values() for kind in one.needs} == set(ANNOTATORS)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("canny", ["lineart"], "canny needs no annotator"),
        ("openpose_hand", ["lineart"], r"needs annotators: OpenPose's network of bodies .*; got 1"),
        ("softedge_hed", [], r"HED, the network of soft edges \(ControlNetHED.pth\); got 0"),
        ("softedge_hed", ["lineart"], "the network of line drawings is not needed"),
        ("lineart_realistic", ["lineart", "lineart"], "is given twice"),
    ],
)  # fmt: skip
def test_annotators_that_do_not_fit_are_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        sdjax.make_hint(PICTURE, name, annotators=[tensors_of(kind) for kind in given])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model3.0.weight"), "model3.0.weight"),
        (lambda t: t.update({"model3.0.weight": np.zeros([2, 3])}), "model3.0.weight"),
        (lambda t: t.update({"model9.weight": np.zeros([2, 3])}), "model9.weight is unknown"),
        (lambda t: t.update({"model0.1.weight": np.zeros([])}), "model0.1.weight"),
        (dict.clear, "it holds no annotator"),
        (lambda t: t.pop("model0.1.weight"), "it holds no annotator that sdjax has. These are HED"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_whole_annotator_is_refused(change, message):
    tensors = tensors_of("lineart")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        convert.load_annotator(tensors or {"x": np.zeros(3)})


def test_the_command_takes_annotators(tmp_path, capsys):
    from safetensors.numpy import save_file

    file = tmp_path / "sk_model.safetensors"
    save_file(tensors_of("lineart"), file)
    image.save_png(tmp_path / "photo.png", PICTURE)
    command = ["hint", "lineart_realistic", str(tmp_path / "photo.png"), "--out", str(tmp_path / "hint.png")]
    assert main([*command, "--resolution", "64", "--annotator", str(file)]) == 0
    made = pictures.open_picture(tmp_path / "hint.png").pixels
    assert (made == sdjax.make_hint(PICTURE, "lineart_realistic", annotators=file, resolution=64)).all()
    capsys.readouterr()
    file.write_bytes(b"nothing")
    assert main([*command[:-1], str(tmp_path / "other.png"), "--annotator", str(file)]) == 3
    assert "sk_model.safetensors" in capsys.readouterr().err
    assert main(command[:-1] + [str(tmp_path / "other.png")]) == 2
    assert "sk_model.pth" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["hed", "lineart", "body", "hand"])
def test_inspect_names_the_file(kind, tmp_path, capsys):
    from safetensors.numpy import save_file

    save_file(tensors_of(kind), tmp_path / "x.safetensors")
    main(["inspect", str(tmp_path / "x.safetensors")])
    assert "--annotator" in "".join(capsys.readouterr())
