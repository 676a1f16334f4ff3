"""Samplers of k-diffusion 0.0.16, ComfyUI 0.3.64 and A1111 1.10.1: what the programs themselves made of a formula."""

import json

import numpy as np
import pytest
from parity_ksam import Formula, run

import reference

ARRAYS = reference.golden("ksamplers")  # a few entries of each run; the formula has no other connection of entries
CASES = json.loads(str(ARRAYS["spec"]))
SIGMAS = np.split(ARRAYS["sigmas"], np.cumsum(ARRAYS["counts"])[:-1])


def formula(x, sigma, shift=0.0):
    s2 = (sigma * sigma)[:, None]
    u = x / (s2 + 1) ** 0.5
    return x * (0.25 / (s2 + 0.25)) + ARRAYS["weave"] * (s2 / (s2 + 1)) * (0.7 * u / (u * u + 1) + shift)


PLAIN = Formula(formula)
PAIR = Formula(lambda x, sigma: (formula(x, sigma), formula(x, sigma, 0.35)))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number]["id"])
def test_results_are_those_of_the_program(number):
    case, sigmas = CASES[number], SIGMAS[number]
    x = (ARRAYS["x_T"] * sigmas[0])[None]
    noises = ARRAYS["noises"][: case["draws"], None]
    denoiser = PAIR if "cfg_pp" in case["name"] else PLAIN
    got = run(case["tool"], case["name"], sigmas, x, denoiser, noises, case["options"])[0]
    want = ARRAYS["out"][number]
    # float32 on both sides; ComfyUI's UniPC computes 1 - alpha^2 at sigma 0.001 in it
    assert np.linalg.norm(got - want) < (2e-4 if "uni_pc" in case["name"] else 5e-5) * np.linalg.norm(want)
