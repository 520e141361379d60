"""All numbers or not, also where the sum of squares overflows."""

from __future__ import annotations

import numpy as np
import pytest

from contract.finite import all_finite


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 39])
def test_one_value_that_is_no_number_is_found(odd: float, place: int) -> None:
    values = np.ones((4, 10), np.float32)
    assert all_finite(values)
    values.flat[place] = odd
    assert not all_finite(values)
    assert not all_finite(np.repeat(values, 2, axis=1)[:, ::2])


@pytest.mark.parametrize("values", [[3e38, -3e38], [0.0], []])
def test_numbers_however_large_are_numbers(values: list[float]) -> None:
    assert all_finite(np.array(values, np.float32))
