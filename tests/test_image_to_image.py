"""Image to image and two passes: what strength means, what recompiles, sizes, batches, refusals."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax import pictures
from sdjax.pictures.image import to_float, to_uint8
from sdjax.pipeline import placement
from sdjax.pipeline.model import make_keys
from sdjax.samplers import SAMPLERS
from sdjax.samplers.noise import SECOND
from sdjax.tasks import inputs, two_pass
from sdjax.tasks.make_batch import make_batch

import models
from checks import count_compilations, near, run_out
from models import picture

FEW = {"num_steps": 4, "devices": jax.devices()[:1]}


def distance(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


def test_no_strength_is_the_autoencoders_round_trip():
    pipe, mesh = models.pipeline(), placement.make_mesh(FEW["devices"])
    keys = make_keys([3])
    latent = pipe.encode_image(to_float(picture()[None]), mesh=mesh, keys=keys)
    want = to_uint8(np.asarray(pipe.decode(latent, mesh=mesh)))
    for sampler in "ddim", "dpm_solver_adaptive":
        got = sdjax.image_to_image(pipe, picture(), "a cat", strength=0, seed=3, sampler=sampler, **FEW)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])  # each kind of start: with variance 1 + sigma^2, and sigma^2
def test_full_strength_is_text_to_image(sampler):
    """Nothing of the picture is left, and the starting noise of a seed is the same."""
    pipe, options = models.pipeline(), {"seed": 5, "sampler": sampler, **FEW}
    want = sdjax.text_to_image(pipe, "a cat", height=64, width=64, **options)
    np.testing.assert_array_equal(sdjax.image_to_image(pipe, picture(), "a cat", strength=1, **options), want)


def test_what_was_done_to_a_file_is_a_warning(tmp_path):
    pixels = np.dstack([picture(), np.full((64, 64), 100, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"picture .*a.png: transparency laid on the colour \(255, 255, 255\)"):
        (opened,) = inputs.open_pictures(tmp_path / "a.png")
    assert opened.shape == (64, 64, 3)


def test_arguments_of_diffusers_are_answered_with_ours():
    with pytest.raises(ValueError, match="there is no picture file 'a cat' .the picture comes"):
        sdjax.image_to_image(models.pipeline(), "a cat", picture(), **FEW)
    with pytest.raises(TypeError, match="no task has an argument num_inference_steps: here it is num_steps"):
        sdjax.image_to_image(models.pipeline(), picture(), "a cat", num_inference_steps=4)
    with pytest.raises(TypeError, match="no task has an argument colour$"):
        sdjax.image_to_image(models.pipeline(), picture(), "a cat", colour=4)


def test_more_strength_leads_further_away():
    pipe, options = models.pipeline(), {"num_steps": 10, "devices": FEW["devices"]}
    made = [sdjax.image_to_image(pipe, picture(), "a cat", strength=s, **options) for s in (0, 0.2, 0.5, 1)]
    far = [distance(made[0], m) for m in made]
    assert far == sorted(far)
    assert 0 == far[0] < far[1]


# The adaptive samplers compile programs of their own
@pytest.mark.few(18)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "dpm_adaptive" else n for n in SAMPLERS]
)
def test_every_sampler_goes_on_from_a_picture(name):
    options = {"strength": 0.5, "sampler": name, **FEW}
    made = sdjax.image_to_image(models.pipeline(), picture(), "a cat", **options)
    assert made.shape == (1, 64, 64, 3)
    assert not np.array_equal(made, sdjax.image_to_image(models.pipeline(), picture(seed=1), "a cat", **options))


@pytest.mark.slow
def test_changing_a_setting_compiles_nothing():
    pipe = models.pipeline()
    base = {"prompt": "a cat", "strength": 0.5, "num_steps": 9, "guidance_scale": 5.0, "seed": 1, "eta": 0.0}
    base |= {"devices": jax.devices()[:1], "height": 72, "width": 88}  # a size that no other test compiles
    assert count_compilations(lambda: sdjax.image_to_image(pipe, picture(), **base)) > 0
    changes = [{"strength": s} for s in (0.0, 0.001, 0.3, 0.77, 1.0)]
    changes += [{"num_steps": 23}, {"num_steps": 3}, {"guidance_scale": 2.5}, {"seed": 2**40}, {"prompt": "a dog"},
                {"eta": 1.0}, {"spacing": "trailing"}, {"compat": "compvis"}]  # fmt: skip
    for change in changes:
        again = {**base, **change}
        assert count_compilations(lambda c=again: sdjax.image_to_image(pipe, picture(), **c)) == 0, change


@pytest.mark.slow
def test_a_picture_depends_on_its_seed_alone():
    pipe, one = models.pipeline(), jax.devices()[:1]
    options = {"num_steps": 3, "strength": 0.7, "eta": 1.0}
    given = [picture(seed=i) for i in range(2)]
    batch = sdjax.image_to_image(pipe, given, "a cat", seed=[7, 2**33], devices=one, **options)
    spread = sdjax.image_to_image(pipe, given, "a cat", seed=[7, 2**33], devices=jax.devices()[:2], **options)
    alone = sdjax.image_to_image(pipe, given[1], "a cat", seed=2**33, devices=one, **options)[0]
    worst = max(np.abs(batch[1].astype(int) - alone).max(), np.abs(batch.astype(int) - spread).max())
    assert worst <= 1  # one 8-bit level


def test_pictures_of_any_kind_and_size_are_taken(tmp_path):
    pixels, path = picture(70, 100), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    kinds = [pixels, [pixels], pixels[None], path, str(path), path.read_bytes(), Image.open(path)]
    made = [sdjax.image_to_image(models.pipeline(), kind, "a cat", strength=0, **FEW) for kind in kinds]
    assert made[0].shape == (1, 64, 64, 3)
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    palette = Image.fromarray(pixels).convert("P")
    assert sdjax.image_to_image(models.pipeline(), palette, "a cat", strength=0, **FEW).shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_pictures_of_several_sizes_keep_their_order_and_seeds():
    given = [picture(64, 64), picture(64, 130), picture(65, 70, seed=1)]
    seen = []
    made = sdjax.image_to_image(models.pipeline(), given, "a cat", seed=10, strength=0.5,
                                progress=lambda done, total: seen.append((done, total)), **FEW)  # fmt: skip
    assert [m.shape for m in made] == [(64, 64, 3), (64, 128, 3), (64, 64, 3)]
    assert seen == [(2, 4), (4, 4)]  # two steps for each of the two sizes
    alone = sdjax.image_to_image(models.pipeline(), given[2], "a cat", seed=12, strength=0.5, **FEW)[0]
    assert near(made[2], alone)


SIZES = [((64, 64), (64, 64)), ((127, 200), (64, 192)), ((10, 500), (64, 448)), ((4000, 6000), (1344, 2048)),
         ((512, 768), (512, 768)), ((1, 1), (64, 64)), ((40000, 1), (2048, 64))]  # fmt: skip


@pytest.mark.parametrize(("size", "want"), SIZES)
def test_sides_are_rounded_down_to_multiples_of_64(size, want):
    assert inputs.working_size(models.TINY, size) == want


def test_a_side_can_be_chosen():
    assert inputs.working_size(models.TINY, (700, 500), 520) == (520, 448)
    assert inputs.working_size(models.TINY, (700, 500), None, 96) == (640, 96)
    with pytest.raises(ValueError, match="height is a multiple of 8 from 64 to 2048; got 100"):
        inputs.working_size(models.TINY, (700, 500), 100)


def test_compat_makes_another_picture():
    pipe, options = models.pipeline(), {"strength": 0.5, "spacing": "compvis", **FEW}
    plain = sdjax.image_to_image(pipe, picture(), "a cat", **options)
    compat = sdjax.image_to_image(pipe, picture(), "a cat", compat="compvis", **options)
    assert not np.array_equal(plain, compat)
    del options["spacing"]
    np.testing.assert_array_equal(sdjax.image_to_image(pipe, picture(), "a cat", compat="compvis", **options), compat)


def test_one_picture_with_many_prompts_and_one_prompt_with_many_pictures():
    pipe, prompts, options = models.pipeline(), ["a cat", "a dog"], {"strength": 0.8, "seed": [1, 1], **FEW}
    by_prompt = sdjax.image_to_image(pipe, picture(), prompts, **options)
    by_picture = sdjax.image_to_image(pipe, [picture(), picture(seed=1)], "a cat", **options)
    both = sdjax.image_to_image(pipe, [picture(), picture(seed=1)], prompts, **options)
    np.testing.assert_array_equal(by_prompt[0], by_picture[0])
    np.testing.assert_array_equal(both[0], by_picture[0])
    assert len({m.tobytes() for m in (*by_prompt, *by_picture[1:], *both[1:])}) == 4


@pytest.mark.few(3)
@pytest.mark.parametrize("upscale", two_pass.UPSCALES)
def test_two_passes_make_a_larger_picture(upscale):
    seen = []
    made = sdjax.two_pass(models.pipeline(), "a cat", enlarge=1.5, upscale=upscale, strength=0.5, height=64, width=64,
                          progress=lambda done, total: seen.append((done, total)), **FEW)  # fmt: skip
    assert made.shape == (1, 96, 96, 3)
    assert seen == [(4, 6), (6, 6)]  # four steps, then half of them


def test_a_second_pass_without_strength_is_the_first_one_enlarged():
    pipe, mesh = models.pipeline(), placement.make_mesh(FEW["devices"])
    options = {"seed": 4, "height": 64, "width": 64, "strength": 0, **FEW}
    batch = make_batch(pipe, "a cat", {"seed": 4, **FEW})
    latent = run_out(batch.sample(None, batch.noise(), batch.conditionings()))
    enlarged = pictures.resize(batch.pixels(latent)[0], 96, 96)
    second = dataclasses.replace(batch, folds=(SECOND,))
    want = batch.pixels(second.encode([enlarged]))  # the round trip, of its own draw
    np.testing.assert_array_equal(sdjax.two_pass(pipe, "a cat", enlarge=1.5, **options), want)
    twice = pipe.decode(np.asarray(latent).repeat(2, 1).repeat(2, 2), mesh=mesh)
    nearest = sdjax.two_pass(pipe, "a cat", enlarge=2, upscale="nearest", **options)
    np.testing.assert_array_equal(nearest, to_uint8(np.asarray(twice)))


def test_a_second_pass_draws_noise_of_its_own():
    batch = make_batch(models.pipeline(), "a cat", {"seed": 4, **FEW})
    first, second = (np.asarray(dataclasses.replace(batch, folds=f).noise()).ravel() for f in ((), (SECOND,)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25  # 256 numbers: four deviations


REFUSED = [
    ({"strength": 1.5}, "strength is a number from 0"),
    ({"image": []}, "at least one picture"),
    ({"image": "missing.png"}, "missing.png"),
    ({"image": b"no picture"}, "picture"),
    ({"image": np.zeros((4, 4, 3))}, "uint8"),
    ({"prompt": ["a", "b"], "image": [picture()] * 3}, "one prompt, or one for each of the 3 pictures; got 2"),
    ({"height": 100}, "nearest is 96 or 104"),
    ({"compat": "photoshop"}, "compat is one of compvis, diffusers"),
    ({"seed": [1, 2, 3], "num_images": 2}, "one seed"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_arguments_are_refused_with_a_sentence(change, message):
    arguments = {"image": picture(), "prompt": "a cat", **FEW, **change}
    with pytest.raises((ValueError, OSError), match=message):
        sdjax.image_to_image(models.pipeline(), arguments.pop("image"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"enlarge": 0.5}, "enlarge is a number from 1 up"), ({"enlarge": 40}, "from 64 to 2048; got 2560"),
     ({"upscale": "esrgan"}, "upscale is one of lanczos, nearest pixels"), ({"strength": -1}, "strength is a number")],
)  # fmt: skip
def test_a_second_pass_refuses_what_it_cannot_do(change, message):
    with pytest.raises(ValueError, match=message):
        sdjax.two_pass(models.pipeline(), "a cat", **{"height": 64, "width": 64, **FEW, **change})


def test_arguments_that_do_not_exist_are_refused():
    with pytest.raises(TypeError, match="stregnth"):
        sdjax.image_to_image(models.pipeline(), picture(), "a cat", stregnth=0.5)
    with pytest.raises(TypeError, match="height"):
        sdjax.inpaint(models.pipeline(), picture(), np.ones((64, 64), bool), "a cat", height=64)
