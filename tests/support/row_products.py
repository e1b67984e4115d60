"""Products of the interpreter in which a row's bits do not depend on its place, as tensor cores'
do not: numpy's own go through a BLAS that takes rows at the edges of its tiles another way."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np


@contextmanager
def placeless_products() -> Iterator[None]:
    """While Triton interprets; each number is summed over K in the same order."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):  # type: ignore[no-untyped-def]
        left, right = (one.data.astype(np.float32) for one in (a, b))
        made = np.zeros((left.shape[0], right.shape[1]), np.float32)
        for k in range(left.shape[1]):
            made += left[:, k, None] * right[k]
        return TensorHandle(made + d.data, d.dtype.scalar)

    with patch.object(InterpreterBuilder, "create_dot", dot):
        yield
