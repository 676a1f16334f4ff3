"""Noise of other tools: equal to what the tools draw, and the facts that make it useful.

`golden/tool_noise.npz` was recorded from PyTorch, AUTOMATIC1111 1.10.1, ComfyUI 0.3.64 and diffusers 0.42.1: a list
of calls, `spec`, as JSON, and their results.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from sdjax import noise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tool_noise.npz")
CASES = json.loads(str(GOLDEN["spec"]))
TOLERANCE = {"float32": 2e-6, "float64": 1e-9, "float16": 2e-3, "bfloat16": 2e-2}  # last bits of sin, cos and log
GENERATORS = {"cpu": noise.TorchCPU, "cuda": noise.TorchCUDA}
SHAPE = (4, 6, 5)


def computed(kind, device=None, seed=None, shapes=None, dtype="float32", **options):
    """Returns the arrays of one recorded call."""
    if kind == "torch_randn":
        generator = GENERATORS[device](seed)
        return [generator.randn(shape, dtype) for shape in shapes]
    return [getattr(noise, kind)(**options, **({} if seed is None else {"seed": seed}),
                                 **({"dtype": dtype} if kind == "diffusers_noise" else {}))]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_noise_is_that_of_the_tool(case):
    options = {name: value for name, value in case.items() if name != "id"}
    tolerance = 2e-5 if case["kind"] == "brownian" else TOLERANCE[case.get("dtype", "float32")]
    for i, got in enumerate(computed(**options)):
        want = GOLDEN[f"{case['id']}/{i}"]
        assert got.shape == want.shape
        got = got.astype(np.float64)
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def test_torch_draws_the_numbers_that_its_documentation_shows():
    # torch.manual_seed(0); torch.randn(3)
    np.testing.assert_allclose(noise.TorchCPU(0).randn((3,)), [1.5410, -0.2934, -2.1788], atol=5e-5)


def test_philox_of_zeros_is_random123s_known_answer():
    assert [hex(word) for word in noise.philox.philox(0, 0, 1)[:, 0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip


def test_a_generator_on_the_cpu_takes_the_low_32_bits_of_a_seed_and_philox_all_64():
    low, high = 7, 7 + 2**32
    np.testing.assert_array_equal(noise.TorchCPU(low).randn(SHAPE), noise.TorchCPU(high).randn(SHAPE))
    assert not np.array_equal(noise.TorchCUDA(low).randn(SHAPE), noise.TorchCUDA(high).randn(SHAPE))


def test_a_brownian_path_depends_on_no_order_and_its_increments_add_up():
    tree = noise.BrownianTree(3, SHAPE, 0.03, 14.6, lambda seed, shape: noise.TorchCPU(seed).randn(shape))
    pairs = [(14.6, 7.0), (7.0, 1.5), (1.5, 0.03), (14.6, 1.5)]
    first, second, third, both = tree(pairs)
    np.testing.assert_array_equal(tree(pairs[::-1])[::-1], [first, second, third, both])
    np.testing.assert_array_equal(tree(pairs[1:2])[0], second)
    whole = first * np.sqrt(14.6 - 7.0) + second * np.sqrt(7.0 - 1.5)
    np.testing.assert_allclose(both * np.sqrt(14.6 - 1.5), whole, atol=1e-5)
    back = tree([(7.0, 14.6)])[0]
    np.testing.assert_array_equal(back, -first)
    assert not tree([(7.0, 7.0)]).any()


def test_a_brownian_paths_increments_are_unit_noise():
    tree = noise.BrownianTree(5, (4, 64, 64), 0.03, 14.6, lambda seed, shape: noise.TorchCPU(seed).randn(shape))
    for draw in tree([(14.6, 9.0), (9.0, 8.9), (0.1, 0.03)]):
        assert abs(draw.mean()) < 0.03  # five standard errors of 16384 numbers are 0.04
        assert abs(draw.std() - 1) < 0.03


def test_a_mixture_goes_from_one_noise_to_the_other_and_stays_unit_noise():
    a, b = (noise.TorchCPU(seed).randn((4, 64, 64)) for seed in (1, 2))
    np.testing.assert_allclose(noise.mix(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(noise.mix(a, b, 1.0), b, atol=1e-6)
    assert abs(noise.mix(a, b, 0.5).std() - 1) < 0.05
    np.testing.assert_allclose(noise.mix(a, a, 0.3), a, atol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [((6, 4), (8, 9)), ((8, 9), (6, 4)), ((4, 9), (6, 4)), ((3, 3), (3, 3))])
def test_noise_of_another_size_lies_in_the_middle(inner, outer):
    out = noise.put_in_middle(np.ones((2, *inner)), np.zeros((2, *outer)))
    assert out.shape == (2, *outer)
    assert out.sum() <= 2 * min(inner[0], outer[0]) * min(inner[1], outer[1])
    rows, columns = (np.flatnonzero(out[0].any(axis)) for axis in (1, 0))
    for kept, side in ((rows, outer[0]), (columns, outer[1])):
        assert abs(kept[0] - (side - 1 - kept[-1])) <= 1


@pytest.mark.parametrize("source", sorted(noise.SOURCES))
def test_a_picture_of_a_batch_drawn_at_once_has_its_part_of_the_draws(source):
    kind = noise.SOURCES[source]
    whole = kind.start(9).randn((3, *SHAPE))
    one = noise.PictureNoise(kind, 9, SHAPE, place=(2, 3))
    np.testing.assert_array_equal(one.start(), whole[2])
    assert one.steps(2).shape == (2, *SHAPE)


def test_ensd_replaces_the_generator_of_steps():
    kind = noise.SOURCES["torch_cpu"]
    plain, shifted = (noise.PictureNoise(kind, 9, SHAPE, ensd=ensd) for ensd in (0, 31337))
    np.testing.assert_array_equal(plain.start(), shifted.start())
    np.testing.assert_array_equal(shifted.steps(1)[0], noise.TorchCPU(9 + 31337).randn(SHAPE))
    assert not np.array_equal(plain.steps(1), noise.TorchCPU(9).randn((1, *SHAPE)))


def test_half_precision_noise_is_no_rounded_noise():
    # torch rounds the uniform numbers, and computes in the type
    exact, half = (noise.TorchCPU(1).randn((64,), dtype) for dtype in ("float32", "float16"))
    assert not np.array_equal(exact.astype(np.float16), half)
    np.testing.assert_allclose(exact, half, atol=0.05)
