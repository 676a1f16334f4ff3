"""The noise schedule of a diffusers scheduler's file, which need not be the model's own."""

import dataclasses
import functools

import numpy as np

from sdjax.config import ScheduleConfig
from sdjax.schedule import ZERO_SNR_ALPHA, NoiseSchedule, betas

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "original_sample": "x0"}
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squaredcos"}
# alphas_cumprod at the last timestep of a rescaled schedule. Some schedulers put 2^-24 there, the others keep 0. A
# sigma cannot be infinite here; this one is 1.7e7
NO_ALPHA = 2.0**-48


@dataclasses.dataclass(frozen=True)
class TableSchedule(NoiseSchedule):
    """A schedule with a table of betas, or rescaled to zero terminal SNR so that it ends at `rescaled_to`."""

    config: ScheduleConfig = ScheduleConfig()
    trained_betas: tuple[float, ...] | None = None
    rescaled_to: float | None = None

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps."""
        return self.config.num_timesteps if self.trained_betas is None else len(self.trained_betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """a_t, float64 [num_timesteps]."""
        return _alphas_cumprod(self)


@functools.lru_cache(maxsize=16)
def _alphas_cumprod(schedule: TableSchedule) -> np.ndarray:
    table = betas(schedule.config) if schedule.trained_betas is None else np.array(schedule.trained_betas)
    a = np.cumprod(1 - table)
    if schedule.rescaled_to is not None:  # shift and stretch sqrt(a) so that it ends at 0; its first value stays
        root = np.sqrt(a)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        a = root**2
        a[-1] = schedule.rescaled_to
    a.setflags(write=False)
    return a


def rescaled_to(class_name: str) -> float:
    """Returns the last alphas_cumprod of a rescaled schedule in this class of diffusers."""
    keeps = ("DDIMScheduler", "DDPMScheduler", "DDIMInverseScheduler", "LCMScheduler", "TCDScheduler")
    return NO_ALPHA if class_name in keeps else ZERO_SNR_ALPHA
