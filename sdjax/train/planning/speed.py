"""Predicts the time of a run from the work of a step and the share of the peak that is reached (MFU)."""

import dataclasses

import numpy as np

# Pictures until MLPerf's target (FID at most 90, CLIP score at least 0.15): least and most of its reference runs by
# batch size. Source: mlcommons/logging, rcp_checker/training_5.0.0/rcps_stable_diffusion.json
TO_TARGET = {
    256: (1_536_000, 2_048_000), 384: (1_536_768, 2_561_280), 512: (1_536_000, 2_560_000),
    1024: (2_560_000, 3_072_000), 2048: (3_584_000, 4_608_000),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SpeedPlan:
    """A prediction: `mfu` of `devices` devices with `peak` operations a second each, for steps of `flops`."""

    flops: float
    batch_size: int
    devices: int
    peak: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.flops / (self.devices * self.peak * self.mfu)

    @property
    def pictures(self) -> float:
        """Pictures a second, on all devices together."""
        return self.batch_size / self.seconds

    def hours(self, pictures: float) -> float:
        """Hours until so many pictures."""
        return pictures / self.pictures / 3600

    def lines(self, steps: int, *, target: bool) -> list[str]:
        """Returns the prediction as text, for a run of `steps` steps; with `target` also for MLPerf's."""
        each = self.pictures / self.devices
        hours = self.hours(steps * self.batch_size)
        found = [
            f"at {self.mfu:.1%} of the peak of {self.peak / 1e12:,.0f} TFLOP/s: {self.pictures:,.1f} pictures a second "
            f"({each:,.1f} on each device), {self.seconds:,.3f} seconds a step",
            f"{steps:,} steps of {self.batch_size} take {hours:,.2f} hours, {hours * self.devices:,.1f} device hours",
        ]
        if target:
            found.append(self._to_target())
        return found

    def _to_target(self) -> str:
        wanted = pictures_to_target(self.batch_size)
        if wanted is None:
            low, high = min(TO_TARGET), max(TO_TARGET)
            return f"MLPerf's target: pictures until it are known for batches from {low} to {high}"
        least, most = (60 * self.hours(pictures) for pictures in wanted)
        return (
            f"MLPerf's target, after {wanted[0] / 1e6:.1f} to {wanted[1] / 1e6:.1f} million pictures: "
            f"{least:,.1f} to {most:,.1f} minutes, {least / 60 * self.devices:,.1f} to "
            f"{most / 60 * self.devices:,.1f} device hours, without evaluation"
        )


def pictures_to_target(batch_size: int) -> tuple[float, float] | None:
    """Returns how many pictures MLPerf's reference needed, least and most; None outside of its batch sizes.

    Between its batch sizes the numbers are interpolated.
    """
    sizes = sorted(TO_TARGET)
    if not sizes[0] <= batch_size <= sizes[-1]:
        return None
    least, most = (float(np.interp(batch_size, sizes, [TO_TARGET[size][i] for size in sizes])) for i in (0, 1))
    return least, most
