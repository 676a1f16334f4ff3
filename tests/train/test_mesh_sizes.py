"""A mesh's sides and the examples of each device, and what is said if they do not fit."""

import re

import pytest

from sdjax.config import ConfigError
from sdjax.train.parallel import ParallelConfig, examples_each


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "devices", "use"),
    [(1024, 1, 3, "1023 or 1026"), (20, 2, 8, "16 or 32"), (4, 1, 8, "8"), (7, 3, 1, "6 or 9")],
)
def test_the_nearest_batch_sizes_are_named_and_fit(batch_size, accumulate, devices, use):
    sizes = {"data": devices, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match=f"got {batch_size}: use {use}$"):
        examples_each(batch_size, accumulate, sizes)
    for fitting in map(int, re.findall(r"\d+", use)):
        assert examples_each(fitting, accumulate, sizes) * devices * accumulate == fitting


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 3), (3, 1), (2, 2)])
def test_sides_that_do_not_fit_the_devices_are_refused_with_a_remedy(data, fsdp):
    with pytest.raises(ValueError, match=f"devices, 8; got {data} x {fsdp} x 1: use -1 for one of them"):
        ParallelConfig(data=data, fsdp=fsdp).sizes(8)
    assert ParallelConfig(data=-1, fsdp=2).sizes(8) == {"data": 4, "fsdp": 2, "tensor": 1}
