"""Inpainting both ways and outpainting: what stays, the networks' inputs, masks, sizes, refusals."""

import dataclasses

import gaussian_blend
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import pictures
from sdjax.diffusion.constraint import Known
from sdjax.pictures.image import to_float
from sdjax.pipeline import placement
from sdjax.samplers import SAMPLERS
from sdjax.tasks import inputs
from sdjax.tasks.batch import Batch
from sdjax.tasks.inpaint import blended
from sdjax.tasks.make_batch import make_batch

import models
from checks import count_compilations, run_out

FEW = {"num_steps": 4, "devices": jax.devices()[:1]}
NINE = dataclasses.replace(models.TINY, name="nine", unet=dataclasses.replace(models.TINY.unet, in_channels=9))
BOTH = [models.TINY, NINE]
each_way = pytest.mark.parametrize("config", BOTH, ids=["blend", "concat"])


def picture(height=64, width=64, seed=0):
    """Returns a picture in which no two pixels are alike, uint8 [h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def spot(height=64, width=64, rows=slice(10, 30), columns=slice(25, 45)):
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.few(2)
@each_way
@pytest.mark.parametrize("size", [(64, 64), (50, 61)])
def test_what_lies_outside_the_mask_comes_back_byte_for_byte(config, size):
    given, mask = picture(*size), spot(*size)
    made = sdjax.inpaint(models.pipeline(config), given, mask, "a cat", **FEW)
    assert made.shape == (1, *size, 3)
    np.testing.assert_array_equal(made[0][~mask], given[~mask])
    assert (made[0][mask] != given[mask]).mean() > 0.9


@each_way
def test_an_empty_mask_gives_the_picture_back(config):
    given = picture(50, 61)
    for only_masked in False, True:
        made = sdjax.inpaint(models.pipeline(config), given, np.zeros((50, 61), bool), "a cat",
                             only_masked=only_masked, **FEW)  # fmt: skip
        np.testing.assert_array_equal(made[0], given)


def test_a_mask_of_the_whole_picture_is_text_to_image():
    pipe, options = models.pipeline(), {"seed": 3, **FEW}
    made = sdjax.inpaint(pipe, picture(), np.ones((64, 64), bool), "a cat", **options)
    np.testing.assert_array_equal(made, sdjax.text_to_image(pipe, "a cat", height=64, width=64, **options))


def test_a_mask_of_the_whole_picture_hides_it_from_a_network_of_nine_channels():
    pipe, whole = models.pipeline(NINE), np.ones((64, 64), bool)
    made = [sdjax.inpaint(pipe, picture(seed=s), whole, "a cat", seed=3, **FEW) for s in (0, 1)]
    np.testing.assert_array_equal(*made)
    seen = sdjax.inpaint(pipe, picture(), spot(), "a cat", composite=False, seed=3, **FEW)
    assert not np.array_equal(seen, made[0])


@each_way
def test_without_composite_the_autoencoder_changes_what_stays(config):
    given, mask = picture(), spot()
    made = sdjax.inpaint(models.pipeline(config), given, mask, "a cat", composite=False, **FEW)
    assert (made[0][~mask] != given[~mask]).mean() > 0.9


# The adaptive samplers compile programs of their own
@pytest.mark.few(18)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "dpm_adaptive" else n for n in SAMPLERS]
)
def test_every_sampler_keeps_the_known_latent(name, monkeypatch):
    """Before it is put in exactly, at the end, it already has no more than the last noise: 6 deviations of it."""
    kept = []

    def put(known, x):
        if x.shape == known.latent.shape and not isinstance(x, jax.core.Tracer):
            kept.append((np.asarray(x - known.latent)[np.broadcast_to(known.keep, x.shape)], x, known))
        return jnp.where(known.keep, known.latent, x)

    monkeypatch.setattr(Known, "put", put)
    batch = make_batch(models.pipeline(), "a cat", {"sampler": name, **FEW}, sizes=[(64, 64)])
    frame = inputs.make_frame(picture(), spot())
    latent = np.asarray(run_out(blended(batch, [frame])))
    ((off, _, known),) = kept
    last = float(batch.starts[0].rows.sigma_next[-1])
    # Where no noise is left: multistep methods weigh the fresh noise of earlier steps, which do not cancel exactly
    assert np.abs(off).max() <= 6 * last + 1e-2 * float(np.abs(known.latent).max())
    np.testing.assert_array_equal(latent, np.where(known.keep, known.latent, latent))


def test_blending_is_the_references_masked_sampler():
    """Against plain numpy: before each step the known part is replaced by itself with fresh noise."""
    got, want, mask = gaussian_blend.both()
    np.testing.assert_allclose(got[mask], want[mask], atol=1e-5)


def test_a_latent_is_made_anew_where_any_of_its_pixels_is():
    mask = np.zeros((16, 24), bool)
    mask[7, 8] = mask[15, 23] = True
    np.testing.assert_array_equal(inputs.repainted_latents(mask, 8), [[0, 1, 0], [0, 0, 1]])


def told_to_the_network(monkeypatch, given, mask, **options):
    """Returns the conditionings with and without the prompt that a network of nine channels gets."""
    seen = []
    sample = Batch.sample
    monkeypatch.setattr(Batch, "sample", lambda batch, x0, noise, told, *more: seen.append(told) or
                        sample(batch, x0, noise, told, *more))  # fmt: skip
    sdjax.inpaint(models.pipeline(NINE), given, mask, "a cat", **FEW, **options)
    return seen[0]


def test_a_network_of_nine_channels_is_told_mask_and_masked_latent(monkeypatch):
    """Behind the latent the mask, 1 where it is made anew, every 8th pixel of it; then the latent, drawn
    from the posterior, of the picture with a hole of grey, 0 in [-1, 1]; the same with and without the prompt."""
    given, mask = picture(), np.random.default_rng(1).random((64, 64)) < 0.5
    told, against = told_to_the_network(monkeypatch, given, mask, seed=9)
    assert told.concat.shape == (1, 8, 8, 5)
    np.testing.assert_array_equal(told.concat[0, :, :, 0], mask[::8, ::8])
    pipe, mesh = models.pipeline(NINE), placement.make_mesh(FEW["devices"])
    hole = np.where(mask[..., None], 0, to_float(given)).astype(np.float32)
    keys = make_batch(pipe, "", {"seed": 9, **FEW}).keys
    mean = pipe.encode_image(hole[None], mesh=mesh)
    drawn = pipe.encode_image(hole[None], mesh=mesh, keys=keys, draw=1)
    np.testing.assert_array_equal(told.concat[..., 1:], drawn)
    assert not np.array_equal(drawn, mean)
    assert not np.array_equal(drawn, pipe.encode_image(hole[None], mesh=mesh, keys=keys))  # not the whole's noise again
    np.testing.assert_array_equal(told.concat, against.concat)


def test_grey_in_a_mask_is_cut_at_one_half(monkeypatch):
    mask = np.full((64, 64), 127, np.uint8)
    mask[:, 32:] = 128
    told, _ = told_to_the_network(monkeypatch, picture(), mask)
    np.testing.assert_array_equal(told.concat[0, :, :, 0], np.repeat([[0] * 4 + [1] * 4], 8, axis=0))


@each_way
def test_the_part_to_repaint_is_filled_before_it_is_sampled(config, monkeypatch):
    """A1111's init_latent * mask + noise * (1 - mask), with the noise of the seed, or without it."""
    seen = []

    def sample(self, x0, noise, *rest, **options):
        seen.append((np.asarray(x0), np.asarray(noise)))
        return x0
        yield

    monkeypatch.setattr(Batch, "sample", sample)
    for fill in "picture", "noise", "nothing":
        sdjax.inpaint(models.pipeline(config), picture(), spot(), "a cat", strength=0.5, fill=fill, seed=3, **FEW)
    (x0, noise), (noisy, _), (empty, _) = seen
    mask = np.zeros((1, 8, 8, 1), bool)
    mask[:, 1:4, 3:6] = True  # every entry with a pixel of rows 10 to 29 and columns 25 to 44
    np.testing.assert_array_equal(noisy, np.where(mask, noise, x0))
    np.testing.assert_array_equal(empty, np.where(mask, 0, x0))
    with pytest.raises(ValueError, match="fill is one of picture, noise, nothing"):
        sdjax.inpaint(models.pipeline(config), picture(), spot(), "a cat", fill="grey", **FEW)


@each_way
def test_no_strength_gives_the_round_trip(config):
    pipe, given, mask = models.pipeline(config), picture(), spot()
    made = sdjax.inpaint(pipe, given, mask, "a cat", strength=0, composite=False, seed=4, **FEW)
    batch = make_batch(pipe, "", {"seed": 4, **FEW}, num_inputs=1)
    np.testing.assert_array_equal(made, batch.pixels(batch.encode([given])))


def test_settings_that_change_compile_nothing():
    for config in BOTH:
        pipe, base = models.pipeline(config), {"strength": 0.7, "seed": 1, "guidance_scale": 5.0, **FEW}
        sdjax.inpaint(pipe, picture(), spot(), "a cat", **base)
        for change in {"strength": 0.4}, {"strength": 1.0}, {"num_steps": 11}, {"guidance_scale": 2.0}, {"seed": 8}:
            again = lambda c=change, b=base, p=pipe: sdjax.inpaint(  # noqa: E731
                p, picture(seed=1), spot(rows=slice(3, 40)), "a dog", **{**b, **c}
            )
            assert count_compilations(again) == 0, change


@pytest.mark.slow
def test_pictures_of_several_sizes_are_one_batch_where_their_padded_sizes_agree():
    given = [picture(40, 100), picture(64, 50), picture(64, 70)]  # the second alone, as in other tests
    masks = [spot(*p.shape[:2]) for p in given]
    seen = []
    made = sdjax.inpaint(models.pipeline(), given, masks, ["a", "b", "c"], seed=5,
                         progress=lambda done, total: seen.append((done, total)), **FEW)  # fmt: skip
    assert seen == [(4, 8), (8, 8)]  # two batches
    for got, old, mask in zip(made, given, masks, strict=True):
        assert got.shape == old.shape
        np.testing.assert_array_equal(got[~mask], old[~mask])
        assert (got[mask] != old[mask]).mean() > 0.9


def test_only_the_part_around_the_mask_is_worked_on_at_the_models_size():
    given, mask = picture(300, 200), spot(300, 200, slice(200, 212), slice(90, 100))
    frame = inputs.make_frame(given, mask, side=512, padding=20)
    assert frame.box.width == frame.box.height == 64  # 50 and 52 pixels, to the multiple of 64
    assert frame.pixels.shape == (512, 512, 3)  # not 64 x 64
    np.testing.assert_array_equal(frame.repaint[::8, ::8], mask[frame.box.slices])
    back = inputs.put_back(frame, frame.pixels, composite=False)
    outside = np.ones((300, 200), bool)
    outside[frame.box.slices] = False
    np.testing.assert_array_equal(back[outside], given[outside])
    made = sdjax.inpaint(models.pipeline(), given, mask, "a cat", only_masked=True, padding=10, **FEW)[0]
    np.testing.assert_array_equal(made[~mask], given[~mask])
    assert (made[mask] != given[mask]).mean() > 0.9


def test_a_large_mask_is_worked_on_as_it_is():
    given, mask = picture(300, 200), spot(300, 200, slice(5, 295), slice(5, 195))
    frame = inputs.make_frame(given, mask, side=64, padding=0)
    assert frame.size == (300, 192) == (frame.box.height, frame.box.width)  # 290 and 190 pixels, to the multiple of 64
    assert frame.pixels.shape == (320, 192, 3)


def test_an_empty_mask_of_a_picture_too_large_to_be_worked_on_gives_it_back():
    given = picture(16, 2100)
    with pytest.raises(ValueError, match="only_masked"):
        inputs.make_frame(given, np.zeros((16, 2100), bool))
    made = sdjax.inpaint(models.pipeline(), given, np.zeros((16, 2100), bool), only_masked=True, **FEW)
    np.testing.assert_array_equal(made[0], given)


def test_arrays_of_jax_and_masks_with_a_last_axis_are_taken():
    given, mask = np.stack([picture(), picture(seed=1)]), spot()
    want = sdjax.inpaint(models.pipeline(), list(given), mask, "a cat", **FEW)
    got = sdjax.inpaint(models.pipeline(), jnp.asarray(given), jnp.asarray(mask)[..., None], "a cat", **FEW)
    np.testing.assert_array_equal(got, want)


def test_feathering_mixes_inside_the_mask_only():
    given, mask = picture(), spot()
    made = {n: sdjax.inpaint(models.pipeline(), given, mask, "a cat", feather=n, **FEW)[0] for n in (0, 4)}
    np.testing.assert_array_equal(made[4][~mask], given[~mask])
    np.testing.assert_array_equal(made[4][17:23, 32:38], made[0][17:23, 32:38])  # further inside than 4
    assert (
        np.abs(made[4][10, 25:45].astype(int) - given[10, 25:45]).mean()
        < np.abs(made[0][10, 25:45].astype(int) - given[10, 25:45]).mean()
    )


@each_way
def test_outpainting_continues_the_picture(config):
    given = picture(40, 50)
    made = sdjax.outpaint(models.pipeline(config), given, "a cat", expand=(5, 3, 9, 16), **FEW)
    assert made.shape == (1, 3 + 40 + 16, 5 + 50 + 9, 3)
    np.testing.assert_array_equal(made[0, 3:43, 5:55], given)
    edges = pictures.expand(given, 5, 3, 9, 16)[0]
    assert (made[0][:3] != edges[:3]).mean() > 0.9


def test_outpainting_takes_a_mask_and_an_overlap():
    given, mask = picture(40, 50), spot(40, 50, slice(30, 36), slice(3, 8))
    made = sdjax.outpaint(models.pipeline(), given, "a cat", expand=(14, 0, 0, 24), mask=mask, overlap=2, **FEW)[0]
    inside = made[:40, 14:]
    stays = ~mask
    stays[:, :2] = stays[38:] = False
    np.testing.assert_array_equal(inside[stays], given[stays])
    assert (inside[~stays] != given[~stays]).mean() > 0.9


SIX = dataclasses.replace(models.TINY, name="six", unet=dataclasses.replace(models.TINY.unet, in_channels=6))
REFUSED = [
    (models.TINY, {"mask": np.ones((64, 65), bool)}, "a mask of 65 x 64 for a picture of 64 x 64"),
    (models.TINY, {"mask": [spot()] * 2}, "one mask, or one for each of the 1 pictures; got 2"),
    (models.TINY, {"mask": np.zeros((64, 64), np.float32)}, "uint8"),
    (models.TINY, {"mask": "missing.png"}, "missing.png"),
    (models.TINY, {"method": "concat"}, r"method 'concat' needs a model that takes 9 channels .*\(tiny\) takes 4"),
    (NINE, {"method": "blend"}, r"method 'blend' needs a model that takes a latent of 4 channels .*\(nine\) takes 9"),
    (SIX, {}, r"inpaint needs a model .*\(six\) takes 6 channels"),
    (models.TINY, {"method": "poisson"}, "method is one of blend, concat"),
    (models.TINY, {"strength": 2}, "strength is a number from 0"),
    (models.TINY, {"padding": -1}, "padding is a whole number of pixels from 0 up; got -1"),
    (models.TINY, {"feather": 2000}, "feather is a whole number of pixels from 0 to 1024; got 2000"),
    (models.TINY, {"feather": 1.5}, "feather is a whole number of pixels"),
    (models.TINY, {"only_masked": True, "seamless": "x"}, "with only_masked a part of the picture is drawn"),
    (models.TINY, {"image": picture(8, 2100), "mask": spot(8, 2100)}, "at most 2048 x 2048 pixels .* got 2100 x 8"),
]


@pytest.mark.parametrize(("config", "change", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_bad_arguments_are_refused_with_a_sentence(config, change, message):
    arguments = {"image": picture(), "mask": spot(), "prompt": "a cat", **FEW, **change}
    with pytest.raises((ValueError, OSError), match=message):
        sdjax.inpaint(models.pipeline(config), arguments.pop("image"), arguments.pop("mask"), **arguments)


@pytest.mark.parametrize("expand", [(0, 0, 0, 0), (1, 2, 3), (-1, 0, 0, 5), (0, 0, 0, 3000), (0.5, 0, 0, 0)])
def test_a_picture_is_extended_by_four_numbers_of_pixels(expand):
    with pytest.raises(ValueError, match="expand must be .left, top, right, bottom"):
        sdjax.outpaint(models.pipeline(), picture(), "a cat", expand=expand, **FEW)


@pytest.mark.parametrize("task", ["text_to_image", "image_to_image", "two_pass"])
def test_a_model_made_for_inpainting_is_refused_elsewhere(task):
    more = [picture()] if task == "image_to_image" else []
    with pytest.raises(ValueError, match=r"\(nine\) takes 9 channels: it is one for inpainting \(sdjax.inpaint"):
        getattr(sdjax, task)(models.pipeline(NINE), *more, "a cat", **FEW)
