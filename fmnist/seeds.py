"""Seeds for one purpose each, derived from a single one."""

import numpy as np


def derive(seed: int, purpose: str, number: int = 0) -> int:
    """A seed of 63 bits, independent of those of other purposes and numbers.

    By numpy's SeedSequence, whose hash keeps related inputs from giving related outputs.
    """
    sequence = np.random.SeedSequence([seed, number, *purpose.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
