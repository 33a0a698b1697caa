"""Independent seeds for separate purposes, derived from one seed."""

import numpy as np


def derive(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed, independent of those for other purposes and numbers.

    numpy's SeedSequence hashes the inputs, so that related inputs give unrelated seeds.
    """
    sequence = np.random.SeedSequence([seed, number, *purpose.encode()])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
