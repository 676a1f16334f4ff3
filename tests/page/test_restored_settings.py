"""Settings that the page restores from a picture of ours are settings that the engine takes."""

from typing import Any

from sdjax.samplers import Sampler
from sdjax.serve.engine.options import read
from sdjax.serve.engine.work import Work


class NoFiles:
    """A library without any file."""

    def folders(self, kind: str) -> list[str]:
        """There is no folder of this kind."""
        return []


def sampler(**settings: Any) -> Sampler:
    return read(Work("txt2img", settings), NoFiles(), ()).sampler()[1]  # type: ignore[arg-type, index]


def test_the_recorded_options_of_a_sampler_are_taken_again() -> None:
    recorded = {"spacing": "trailing", "end": "sigma_min", "eta": 0, "cfg_pp": False}  # JSON of the browser: 0, not 0.0
    made = sampler(sampler="ddim", sampler_options=recorded)
    assert (made.spacing, made.end, made.eta) == ("trailing", "sigma_min", 0.0)


def test_a_setting_goes_before_the_recorded_option_of_its_name() -> None:
    recorded = {"spacing": "trailing", "eta": 0.1}
    assert sampler(sampler="ddim", eta=0.5, sampler_options=recorded).eta == 0.5
    assert sampler(sampler="ddim", schedule="karras", sampler_options=recorded).spacing == "karras"
