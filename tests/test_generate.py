"""Text to image: what a picture depends on, what recompiles, devices, sizes, refusals."""

import functools

import jax
import numpy as np
import pytest

import sdjax
from sdjax.config import ScheduleConfig
from sdjax.pipeline import placement
from sdjax.samplers import SAMPLERS
from sdjax.schedule import NoiseSchedule
from sdjax.tasks.expand import expand
from sdjax.tasks.resolve import make_sampler
from sdjax.tasks.results import advice, check_images

import models
from checks import count_compilations, near

FEW = {"num_steps": 3, "devices": jax.devices()[:1]}
SLOW = pytest.mark.slow  # each compiles the network once more


def test_a_prompt_becomes_pictures():
    images = sdjax.text_to_image(models.pipeline(), ["a cat", "a dog"], num_images=2, **FEW)
    assert images.shape == (4, 64, 64, 3)
    assert images.dtype == np.uint8
    for i in range(4):
        assert images[i].std() > 1
        for j in range(i):
            assert not np.array_equal(images[i], images[j])


def test_prompt_negative_prompt_seed_and_scale_each_change_the_picture():
    # Four pictures at once, as above: the same program
    pipe, few = models.pipeline(), {"guidance_scale": 5.0, **FEW}
    prompts, negatives, seeds = ["a cat", "a dog", "a cat", "a cat"], ["", "", "blurry", ""], [1, 1, 1, 2]
    cats = sdjax.text_to_image(pipe, ["a cat"] * 4, seed=[1] * 4, **few)
    np.testing.assert_array_equal(cats, sdjax.text_to_image(pipe, ["a cat"] * 4, seed=[1] * 4, **few))
    each = sdjax.text_to_image(pipe, prompts, negative_prompt=negatives, seed=seeds, **few)
    np.testing.assert_array_equal(each[0], cats[0])
    for i, change in enumerate(("prompt", "negative prompt", "seed"), 1):
        assert not np.array_equal(each[i], cats[i]), change
    for change in ({"guidance_scale": 6.0}, {"eta": 1.0}):
        assert not np.array_equal(cats, sdjax.text_to_image(pipe, ["a cat"] * 4, seed=[1] * 4, **{**few, **change})), (
            change
        )


def test_changing_a_setting_compiles_nothing():
    pipe = models.pipeline()
    base = {"prompt": "a cat", "seed": 1, "guidance_scale": 5.0, "negative_prompt": "", "num_steps": 7, "eta": 0.0}
    base |= {"devices": jax.devices()[:1], "height": 72}  # a size that no other test compiles before this one
    assert count_compilations(lambda: sdjax.text_to_image(pipe, **base, sampler="ddim")) > 0
    changes = [{"prompt": "a dog"}, {"negative_prompt": "blurry"}, {"seed": 2}, {"guidance_scale": 6.5}, {"eta": 0.7},
               {"num_steps": 4}, {"num_steps": 11}, {"spacing": "trailing"}, {"spacing": "compvis"}]  # fmt: skip
    for change in changes:
        assert count_compilations(lambda c=change: sdjax.text_to_image(pipe, **{**base, **c})) == 0, change


@functools.cache
def four(count, **options):
    """Returns four pictures made on so many devices, two each where there are two.

    At the real width: narrow networks hide that a convolution's last bits depend on the batch size.
    """
    prompts, options = [f"picture {i}" for i in range(4)], {"num_steps": 2, "guidance_scale": 4.0, **options}
    return sdjax.text_to_image(models.pipeline(models.WIDE), prompts, seed=[3, 9, 4, 15], devices=jax.devices()[:count],
                               **options)  # fmt: skip


def alone(**options):
    """Returns the second of them made by itself."""
    options = {"num_steps": 2, "guidance_scale": 4.0, **options}
    return sdjax.text_to_image(models.pipeline(models.WIDE), "picture 1", seed=9, devices=jax.devices()[:1], **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_picture_is_the_same_in_a_batch_and_on_several_devices(parallel):
    assert near(four(1), four(2, parallel=parallel))  # one 8-bit level


def test_pmap_makes_the_pictures_of_jit():
    how = {"num_steps": 2, "seed": [3, 9], "devices": jax.devices()[:2]}
    pictures = [sdjax.text_to_image(models.pipeline(), "a", parallel=one, **how) for one in ("jit", "pmap")]
    assert near(*pictures)


def test_a_picture_is_the_same_alone_and_in_a_batch():
    assert near(four(1)[1:2], alone())


@pytest.mark.slow
def test_exact_pictures_are_bit_identical_alone_in_a_batch_and_on_several_devices():
    batch = four(1, exact=True)
    np.testing.assert_array_equal(batch, four(2, exact=True))
    np.testing.assert_array_equal(batch[1:2], alone(exact=True))


@functools.cache
def mixture():
    """Returns requests of one size that differ in everything else."""
    each = [
        ("ddim", 20, 4.0, 0.0),
        ("dpmpp_2m", 12, 1.0, 0.0),
        ("heun", 9, 7.5, 0.7),
        ("euler_ancestral", 16, 3.0, 0.0),
    ]
    return [
        sdjax.Request(f"picture {i}", seed=i, sampler=name, num_steps=n, guidance_scale=scale, guidance_rescale=rescale)
        for i, (name, n, scale, rescale) in enumerate(each)
    ]


@functools.cache
def mixed(count, **how):
    """Returns their pictures, made in one batch on so many devices."""
    return sdjax.generate(models.pipeline(), mixture(), devices=jax.devices()[:count], **how)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("count", "how"),
    [(1, {}), (2, {}), pytest.param(2, {"parallel": "pmap"}, marks=SLOW), pytest.param(1, {"exact": True}, marks=SLOW)],
)
def test_pictures_of_different_samplers_steps_and_scales_share_a_batch(count, how):
    got = mixed(count, **how)
    for i, request in enumerate(mixture()):
        same = sdjax.generate(
            models.pipeline(), [request] * 4, devices=jax.devices()[:1]
        )  # four, as one program has it
        assert near(got[i : i + 1], same[:1]), request.sampler


def test_another_mixture_of_the_same_size_compiles_nothing():
    mixed(1)
    others = [("plms", 6, 2.0, 0.5), ("unipc", 5, 1.0, 0.0), ("dpm2", 4, 8.0, 0.0), ("lms", 7, 1.5, 1.0)]
    requests = [
        sdjax.Request("a cat", seed=i, sampler=name, num_steps=n, guidance_scale=scale, guidance_rescale=rescale)
        for i, (name, n, scale, rescale) in enumerate(others)
    ]
    make = lambda: sdjax.generate(models.pipeline(), requests, devices=jax.devices()[:1])  # noqa: E731
    assert count_compilations(make) == 0


def test_starting_noise_is_bit_identical_alone_in_a_batch_and_on_eight_devices():
    from sdjax.pipeline.model import make_keys

    pipe, seeds = models.pipeline(), [7, 2**32 - 1, 2**40, 0, 1, 2, 3, 4]
    one, eight = placement.make_mesh(jax.devices()[:1]), placement.make_mesh(jax.devices())
    batch = np.asarray(pipe.noise(make_keys(seeds), 64, 64, mesh=one))
    np.testing.assert_array_equal(batch, pipe.noise(make_keys(seeds), 64, 64, mesh=eight))
    np.testing.assert_array_equal(batch[2:3], pipe.noise(make_keys([2**40]), 64, 64, mesh=one))


def test_a_seed_of_32_bits_is_the_key_jax_makes_of_it():
    from sdjax.pipeline.model import make_keys

    for seed in (0, 42, 2**32 - 1):
        want = jax.random.key_data(jax.random.key(np.uint32(seed), impl="threefry2x32"))
        np.testing.assert_array_equal(jax.random.key_data(make_keys([seed]))[0], want)


def test_guidance_off_runs_the_network_once_a_step():
    pipe, flops = models.pipeline(), {}
    for scale in (1, 2):
        flops[scale] = sampler_flops(pipe, guided=scale != 1)
    assert flops[2] / flops[1] == pytest.approx(2, rel=0.05)  # the time embedding is computed twice too


def test_a_cfg_plus_plus_sampler_uses_the_negative_prompt_at_scale_one_too():
    pipe, made = models.pipeline(), {}
    for name, negative in (("euler", ""), ("euler_cfg_pp", ""), ("euler_cfg_pp", "a dog")):
        made[name, negative] = sdjax.text_to_image(
            pipe, "a cat", negative_prompt=negative, sampler=name, guidance_scale=1, **FEW
        )
    assert not np.array_equal(made["euler_cfg_pp", ""], made["euler", ""])
    assert not np.array_equal(made["euler_cfg_pp", ""], made["euler_cfg_pp", "a dog"])


def lowered_sampler(pipe, *, guided=True, devices=None, parallel="jit", platforms=None):
    """Returns the compiled sampling program's jax.stages.Lowered for pictures of 64 x 64, one a device."""
    from sdjax.diffusion.conditioning import Conditioning
    from sdjax.diffusion.guidance import ClassifierFree, Unguided
    from sdjax.diffusion.network import UNetNetwork
    from sdjax.pipeline import programs
    from sdjax.samplers import chunks, repeat

    mesh = placement.make_mesh(devices)
    sampler = SAMPLERS["ddim"]()
    program = programs.SampleProgram(UNetNetwork(pipe.config.unet, pipe.dtype), "epsilon", sampler.rule)
    x = jax.ShapeDtypeStruct((mesh.size, 8, 8, 4), np.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), mesh.size))
    context = Conditioning(context=jax.ShapeDtypeStruct((mesh.size, 77, pipe.config.text.width), np.float32))
    rows = next(chunks(repeat(sampler.steps(pipe.schedule, 10), mesh.size), programs.CHUNK))
    branches = (context, context) if guided else (context,)
    numbers = np.ones(mesh.size, np.float32)
    guidance = ClassifierFree(5 * numbers, 0 * numbers) if guided else Unguided()
    state = jax.eval_shape(functools.partial(programs.begin, program), pipe.params["unet"], x, branches, guidance)
    args = (pipe.params["unet"], programs.images_first(rows), state, keys, branches, guidance, None, None)
    run = placement.compiled(programs.sample, program, mesh, programs.SPREAD, parallel)
    return run, args


def sampler_flops(pipe, *, guided):
    run, args = lowered_sampler(pipe, guided=guided, devices=jax.devices()[:1])
    return run.lower(*args).cost_analysis()["flops"]


def test_the_sampler_on_eight_devices_holds_no_collective():
    run, args = lowered_sampler(models.pipeline(), devices=jax.devices())
    text = run.lower(*args).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    assert "while" in text  # it is the sampler: its scan is there


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sampler_lowers_for_tpu(dtype):
    run, args = lowered_sampler(models.pipeline(models.TINY, dtype), devices=jax.devices()[:1])
    exported = jax.export.export(jax.jit(lambda *args: run(*args)), platforms=["tpu"])(*args)
    assert exported.platforms == ("tpu",)


def test_one_prompt_becomes_as_many_pictures_as_there_are_seeds():
    requests = expand("a cat", negative_prompt="a dog", seed=[7, 3, 7])
    assert [(r.prompt, r.negative_prompt, r.seed) for r in requests] == [("a cat", "a dog", s) for s in (7, 3, 7)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_zero_terminal_snr_every_sampler_starts_at_the_last_timestep(name):
    schedule = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    for num_steps in (10, 20, 50):
        assert make_sampler(name, schedule).steps(schedule, num_steps).timestep[0] == 999
    # On the releases' schedules a sampler keeps its own spacing
    for released in (NoiseSchedule(), NoiseSchedule(ScheduleConfig(prediction="v"))):
        assert make_sampler(name, released) == make_sampler(name) == SAMPLERS[name]()


def test_a_spacing_that_was_chosen_stays_on_zero_terminal_snr():
    schedule = NoiseSchedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    assert make_sampler("ddim", schedule, spacing="even") == SAMPLERS["ddim"]()
    assert make_sampler(SAMPLERS["ddim"](), schedule, eta=0.5).spacing == "even"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "nearest is 96 or 104"),
        ({"width": 4096}, "nearest is 2048"),
        ({"height": 8}, "nearest is 64"),
        ({"sampler": "dimm"}, "the nearest known ones are ddim"),
        ({"seed": [1, 2], "num_images": 3}, "one seed"),
        ({"seed": []}, "one seed"),
        ({"prompt": ["a", "b"], "seed": [1]}, "one seed"),
        ({"seed": -1}, "a seed lies between"),
        ({"num_images": 0}, "from 1 up; got 0"),
        ({"negative_prompt": ["a", "b"]}, "one negative prompt"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"prompt": []}, "at least one prompt"),
        ({"parallel": "threads"}, "parallel is one of"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdjax.text_to_image(models.pipeline(), **{"prompt": "a cat", **FEW, **arguments})


def test_pictures_without_content_are_an_error():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    check_images(image, "float32")
    broken, flat = image.copy(), image.copy()
    broken[1, 0, 0, 0] = np.nan
    flat[0] = 0.25
    with pytest.raises(sdjax.ImageError, match="picture 1 holds values that are not numbers.*bfloat16"):
        check_images(broken, "float16")
    with pytest.raises(sdjax.ImageError, match="picture 0 is one flat colour"):
        check_images(flat, "float32")


def test_out_of_memory_names_what_to_try():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    with pytest.raises(sdjax.OutOfMemoryError, match="fewer pictures.*smaller size.*bfloat16"), \
            advice(1024, 1024, 4, "float32"):  # fmt: skip
        raise error
    with pytest.raises(jax.errors.JaxRuntimeError), advice(64, 64, 1, "float32"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_progress_counts_calls_of_the_network():
    seen = []
    sdjax.text_to_image(models.pipeline(), "a cat", num_steps=7, height=72, devices=jax.devices()[:1],
                        progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen[-1] == (7, 7)
    assert all(a < b for (a, _), (b, _) in zip(seen, seen[1:]))
