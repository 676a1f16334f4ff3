import numpy as np
import picture_sets
import pytest
from PIL import Image

from sdjax.train.data.buckets import Buckets, shrunk
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.pictures import BadPicture, Draws, Part, Pictures, crop_box, draws, fit, read
from sdjax.train.data.records import Record, SourceError

MIDDLE = Draws(0.5, 0.5, 0.999, 0.0)


def test_buckets_of_512_are_the_community_s():
    """What the rule gives by hand: for each width the tallest multiple of 64 within 512 * 512, both ways round."""
    tall = {256: 1024, 320: 768, 384: 640, 448: 576, 512: 512}
    long = {576: 448, 640: 384, 704: 320, 768: 320, 832: 256, 896: 256, 960: 256, 1024: 256}
    expected = {(w, h) for w, h in (tall | long).items()} | {(h, w) for w, h in (tall | long).items()}
    assert set(Buckets.of_area(512).sizes) == expected


@pytest.mark.parametrize(
    ("side", "step", "least", "most"), [(768, 64, 512, 1536), (64, 8, 32, 128), (500, 64, 64, 512)]
)
def test_buckets_keep_their_limits(side, step, least, most):
    buckets = Buckets.of_area(side, step=step, least=least, most=most)
    for w, h in buckets.sizes:
        assert w * h <= side * side
        assert w % step == h % step == 0
        assert least <= min(w, h) <= max(w, h) <= most
        assert (h, w) in buckets.sizes
        square = w == h == side // step * step
        assert square or any(b + step > most or a * (b + step) > side * side for a, b in ((w, h), (h, w)))


@pytest.mark.parametrize(
    "arguments", [{"step": 60}, {"least": 200}, {"least": 576, "most": 1024}, {"most": 448}, {"step": 0}]
)
def test_buckets_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match="bucket|resolution|size"):
        Buckets.of_area(512, **arguments)


def test_a_picture_goes_to_the_nearest_log_aspect_ratio():
    buckets = Buckets(((512, 512), (1024, 256), (256, 1024)))
    w = np.array([1, 199, 201, 100, 5000, 0, 7])
    h = np.array([1, 100, 100, 201, 10, 5, 0])
    assert buckets.assign(w, h).tolist() == [0, 0, 1, 2, 1, -1, -1]  # between 1 and 4 the middle is 2


def test_of_one_aspect_ratio_the_largest_bucket_is_taken():
    assert Buckets(((256, 256), (512, 512), (128, 128))).assign(np.array([10]), np.array([10])).tolist() == [1]


def test_without_enlarging_each_picture_has_the_size_that_is_in_it():
    # Small ones are cut to multiples of 64; 1000 x 600 has 1.666: 661 x 397 pixels are 512^2, so it is shrunk to 640 x
    # 384 (1.667) and not to a width of 640 and a height of 384; 900 x 900 to 512 x 512
    w, h = np.array([300, 200, 1000, 900, 40, 0]), np.array([200, 300, 600, 900, 70, 0])
    buckets = Buckets.of_pictures(w, h, 512)
    sizes = [buckets.sizes[i] if i >= 0 else None for i in buckets.assign(w, h)]
    assert sizes == [(256, 192), (192, 256), (640, 384), (512, 512), (64, 64), None]
    assert set(buckets.sizes) == set(sizes[:-1])


def test_of_two_ways_to_shrink_the_one_with_the_nearer_aspect_ratio_is_taken():
    # 600 x 723 (0.830): by its width 448 x 540, cut to 448 x 512 (0.875); by its height 424 x 512, cut to 384 (0.75).
    # 600 x 764 (0.785): by its width 448 x 512 (0.875), by its height 452 x 576, cut to 448 (0.778)
    assert shrunk(np.array([600, 600]), np.array([723, 764]), 512, 64).tolist() == [[448, 512], [448, 576]]


def test_without_enlarging_no_side_grows_and_little_is_cut():
    rng = np.random.default_rng(0)
    w, h = rng.integers(64, 3000, (2, 2000))
    sizes = shrunk(w, h, 512, 64)
    assert (sizes % 64 == 0).all()
    assert (sizes[:, 0] <= w).all()
    assert (sizes[:, 1] <= h).all()
    assert (sizes.prod(1) < 1.15 * 512**2).all()
    scale = np.maximum(sizes[:, 0] / w, sizes[:, 1] / h)  # what is left of the picture loses less than a step a side
    assert ((scale * w - sizes[:, 0] < 64) & (scale * h - sizes[:, 1] < 64)).all()


def test_opacity_is_the_mask_of_a_picture_without_one(tmp_path):
    rgba = np.full((32, 32, 4), 200, np.uint8)
    rgba[:, :16, 3], rgba[:, 16:, 3] = 0, 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba).save(tmp_path / "b.png")
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "b_mask.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "c.jpg")
    source = Folder(tmp_path, default="x")
    masks = {}
    for how in (True, "alpha"):
        pictures = Pictures([Part(source)], Buckets.square(32), masks=how)
        masks[how] = [pictures.load(0, i, (32, 32), 0, 0)["mask"] for i in range(3)]
    assert [mask.mean() for mask in masks[True]] == [255, 90, 255]
    assert (masks["alpha"][0] == rgba[..., 3]).all()
    assert [mask.mean() for mask in masks["alpha"][1:]] == [90, 255]


def test_small_buckets_are_emptied_into_their_neighbours():
    buckets = Buckets(((100, 400), (200, 300), (300, 300), (400, 100)))
    assert buckets.merged([1, 2, 9, 9], 4).tolist() == [2, 2, 2, 3]
    assert buckets.merged([4, 0, 4, 4], 4).tolist() == [0, 1, 2, 3]
    assert buckets.merged([1, 0, 0, 1], 4).tolist() in ([3, 1, 2, 3], [0, 1, 2, 0])
    assert buckets.merged([0, 0, 1, 0], 4).tolist() == [0, 1, 2, 3]


def test_a_crop_has_the_bucket_s_shape_and_touches_two_borders():
    for picture, size in [
        ((300, 200), (64, 64)),
        ((200, 300), (128, 64)),
        ((37, 1000), (64, 192)),
        ((64, 64), (64, 64)),
    ]:
        for across, down in [(0.0, 0.0), (0.3, 0.9), (0.999, 0.999)]:
            left, top, right, bottom = crop_box(picture, size, Draws(across, down, 0, 0))
            assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
            assert 0 <= left <= right <= picture[0]
            assert 0 <= top <= bottom <= picture[1]
            assert (right - left == pytest.approx(picture[0])) or (bottom - top == pytest.approx(picture[1]))


def test_a_crop_in_the_middle_is_pillow_s_own():
    """Where the crop falls on whole pixels and nothing is resized, its pixels are the picture's."""
    source = picture_sets.pixels(9, 100, 64)
    made = fit(source, (64, 64), crop_box((100, 64), (64, 64), None), "lanczos", False)
    np.testing.assert_array_equal(made, source[:, 18:82])
    np.testing.assert_array_equal(
        fit(source, (64, 64), crop_box((100, 64), (64, 64), None), "lanczos", True), source[:, 18:82][:, ::-1]
    )


def test_shrinking_by_area_takes_means():
    source = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    made = fit(source, (32, 16), (0, 0, 128, 64), "area", False)
    means = source.reshape(16, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(made - means).max() <= 1.0  # Pillow rounds after each of its two passes


def test_shrinking_by_lanczos_is_pillow_s():
    source = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    made = fit(source, (24, 24), (10.5, 0, 74.5, 64), "lanczos", False)
    expected = Image.fromarray(source).resize((24, 24), Image.Resampling.LANCZOS, (10.5, 0, 74.5, 64))
    np.testing.assert_array_equal(made, np.asarray(expected))


def test_draws_are_even_and_their_own_for_each_key_visit_and_seed():
    drawn = np.array([draws(0, f"picture {i}", 0) for i in range(4000)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    # means and correlations of fair draws, to five standard deviations
    assert np.abs(drawn.mean(0) - 0.5).max() < 5 * (1 / 12 / 4000) ** 0.5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 5 / 4000**0.5
    assert len({draws(s, k, v) for s in (0, 1) for k in ("a", "b") for v in (0, 1)}) == 8
    assert draws(1, "a", 2) == draws(1, "a", 2)


def load(pictures, number, size, visit=0, seed=0):
    return pictures.load(0, number, size, visit, seed)


def test_a_random_crop_is_a_function_of_key_visit_and_seed():
    pictures = Pictures([Part(picture_sets.Numbers(4, ((96, 48),)))], Buckets.square(48), flip=0.5)
    first = load(pictures, 2, (48, 48), 5, 7)
    np.testing.assert_array_equal(first["image"], load(pictures, 2, (48, 48), 5, 7)["image"])
    others = [load(pictures, 2, (48, 48), v, s)["image"] for v in range(4) for s in range(2)]
    assert len({image.tobytes() for image in others}) == 8
    lefts = [image[0, :, 1].min() for image in others]
    assert max(lefts) > 60  # of 127: crops reach into the right half
    falls = [bool(image[0, 0, 1] > image[0, -1, 1]) for image in others]
    assert set(falls) == {False, True}  # some are mirrored


def test_flips_come_as_often_as_asked():
    pictures = Pictures([Part(picture_sets.Numbers(1, ((48, 48),)))], Buckets.square(48), flip=0.25)
    flipped = sum(int(image[0, 0, 1]) > 128 for image in (load(pictures, 0, (48, 48), v)["image"] for v in range(400)))
    assert abs(flipped - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_every_variant_of_a_caption_comes_up():
    class Varied(picture_sets.Numbers):
        def __getitem__(self, i):
            return super().__getitem__(i)._replace(captions=("a", "b", "c"))

    pictures = Pictures([Part(Varied(1))], Buckets.square(48))
    seen = [load(pictures, 0, (48, 48), v)["caption"] for v in range(60)]
    assert set(seen) == {"a", "b", "c"}
    assert load(pictures, 0, (48, 48), 3)["caption"] == seen[3]


def test_a_mask_is_cut_as_its_picture():
    class Masked(picture_sets.Numbers):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            mask = np.where(picture_sets.pixels(0, *self.sizes[0])[..., 1] >= 128, 255, 0).astype(np.uint8)
            return record._replace(mask=png(mask)) if i == 0 else record

    pictures = Pictures([Part(Masked(2, ((96, 48),)))], Buckets.square(48), flip=0.5, masks=True)
    for visit in range(6):
        example = load(pictures, 0, (48, 48), visit)
        right = example["image"][..., 1].astype(int) >= 128
        assert (right == (example["mask"] >= 128)).mean() > 0.97  # edges of the two filters
    assert (load(pictures, 1, (48, 48))["mask"] == 255).all()


def png(array):
    import io

    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_a_mask_of_another_size_makes_a_picture_bad():
    pictures = Pictures([Part(picture_sets.Numbers(1))], Buckets.square(48), masks=True)
    record = Record("a", picture_sets.encoded(0, 48, 48), ("x",), {}, png(np.zeros((40, 40), np.uint8)))
    with pytest.raises(BadPicture, match="its mask: "):
        pictures.prepare(record, (48, 48), MIDDLE)


def test_transparent_parts_show_the_background():
    rgba = np.zeros((48, 48, 4), np.uint8)
    record = Record("a", png(rgba), ("x",), {})
    for colour in ((255, 255, 255), (10, 20, 30)):
        pictures = Pictures([Part(picture_sets.Numbers(1))], Buckets.square(48), background=colour)
        assert (pictures.prepare(record, (48, 48), MIDDLE)["image"] == colour).all()


def test_filters_and_unreadable_heads_are_counted_as_left_out():
    source = picture_sets.Numbers(10)
    source.table["width"][3] = 0
    pictures = Pictures([Part(source, where="number >= 2")], Buckets.square(48))
    assert [stream.members.tolist() for stream in pictures.streams] == [[2, 4, 5, 6, 7, 8, 9]]
    assert pictures.left_out == {"filtered by number >= 2": 2, "no picture's head": 1}
    with pytest.raises(SourceError, match="takes none of 10 records"):
        Pictures([Part(source, where="number > 50")], Buckets.square(48))
    with pytest.raises(ValueError, match="names 'numbr' .did you mean 'number'"):
        Pictures([Part(source, where="numbr > 50")], Buckets.square(48))


def test_weights_set_the_shares_of_an_epoch():
    small, large = picture_sets.Numbers(10, name="small"), picture_sets.Numbers(90, name="large")
    pictures = Pictures([Part(small, weight=3), Part(large, weight=1)], Buckets.square(48))
    shown = [stream.rate * len(stream.members) for stream in pictures.streams]
    assert shown == [pytest.approx(75), pytest.approx(25)]
    with pytest.raises(SourceError, match="all parts of a training set have a weight, or none"):
        Pictures([Part(small, weight=3), Part(large)], Buckets.square(48))
    with pytest.raises(SourceError, match="above 0"):
        Part(small, weight=0)


def test_buckets_too_small_for_a_batch_are_merged_and_named():
    source = picture_sets.Numbers(12, ((64, 64), (64, 64), (128, 64)))
    buckets = Buckets(((64, 64), (128, 64)))
    assert [len(s.members) for s in Pictures([Part(source)], buckets, least=4).streams] == [8, 4]
    pictures = Pictures([Part(source)], buckets, least=5)
    assert [(s.size, len(s.members)) for s in pictures.streams] == [((64, 64), 12)]
    assert pictures.notices == ["4 pictures for 128 x 64 are fewer than 5, and go to 64 x 64"]
    assert len(Pictures([Part(source, repeats=2)], buckets, least=5).streams) == 2


def test_reading_is_tried_again_unless_the_file_is_not_there():
    class Flaky(picture_sets.Numbers):
        fails, tried = 2, 0

        def __getitem__(self, i):
            self.tried += 1
            if self.tried <= self.fails:
                raise (TimeoutError if i == 0 else FileNotFoundError)("x")
            return super().__getitem__(i)

    assert read(Flaky(2), 0).key == "numbers/0"
    with pytest.raises(BadPicture, match="FileNotFoundError"):
        read(Flaky(2), 1)
    gone = Flaky(2)
    gone.fails = 3
    with pytest.raises(BadPicture, match="cannot be read .TimeoutError"):
        read(gone, 0)
