"""The noise schedule of a diffusers scheduler's file, which need not be the model's own."""

import dataclasses
import functools

import numpy as np

from sdjax.config import Prediction, ScheduleKind
from sdjax.schedule import ZERO_SNR_ALPHA, NoiseSchedule, rescaled

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "x0",
    "original_sample": "x0",
}
KINDS: dict[str, ScheduleKind] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squaredcos",
}
# alphas_cumprod at the last timestep of a rescaled schedule. Some schedulers put 2^-24 there, the others keep 0. A
# sigma cannot be infinite here; this one is 1.7e7
NO_ALPHA = 2.0**-48


@dataclasses.dataclass(frozen=True)
class TableSchedule(NoiseSchedule):
    """A schedule that may have a table of betas."""

    trained_betas: tuple[float, ...] | None = None

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps."""
        return self.config.num_timesteps if self.trained_betas is None else len(self.trained_betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a_t, float64 [num_timesteps]."""
        if self.trained_betas is None:
            return super().alphas_cumprod
        return _alphas_cumprod(self.trained_betas, self.last_alpha)


@functools.lru_cache(maxsize=16)
def _alphas_cumprod(betas: tuple[float, ...], last_alpha: float | None) -> np.ndarray:
    a = np.cumprod(1 - np.array(betas))
    if last_alpha is not None:
        a = rescaled(a, last_alpha)
    a.setflags(write=False)
    return a


def rescaled_to(class_name: str) -> float:
    """Returns the last alphas_cumprod of a rescaled schedule in this class of diffusers."""
    keeps = ("DDIMScheduler", "DDPMScheduler", "DDIMInverseScheduler", "LCMScheduler", "TCDScheduler")
    return NO_ALPHA if class_name in keeps else ZERO_SNR_ALPHA
