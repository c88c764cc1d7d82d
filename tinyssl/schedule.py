"""Learning-rate schedules as arrays with one value per step."""

import numpy as np
from numpy.typing import NDArray


def warmup_cosine(steps: int, warmup: int, peak: float) -> NDArray[np.float64]:
    """Linear warm-up to `peak`, then half a cosine down to 0 (arXiv:1608.03983, eq. 5).

    Args:
        steps: length of the schedule.
        warmup: steps of the warm-up; the step after it has the peak.
        peak: highest learning rate.

    Returns:
        (steps,) learning rates.
    """
    warmup = min(warmup, steps)
    rise = peak * (np.arange(warmup) + 1) / (warmup + 1)
    progress = np.arange(steps - warmup) / max(1, steps - warmup)
    fall = peak * (1 + np.cos(np.pi * progress)) / 2
    return np.concatenate([rise, fall])
