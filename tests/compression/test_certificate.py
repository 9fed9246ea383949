"""What is promised: more where more is lost, of whichever kind."""

from __future__ import annotations

import pytest

from st_plugins.compression import Certificate
from st_plugins.compression.choice.fidelity import Measured


def test_the_formula() -> None:
    found = Certificate.of(Measured(0.04, 0.002, 0.7, 0.01))
    assert found.loss == pytest.approx(0.05 * 4**1.5)
    assert found.loss_bound == pytest.approx(2 * 0.05 * (4 + 1.645 * 0.2) ** 1.5 + 0.15)
    assert found.neighbors == 0.7
    assert found.neighbors_bound == pytest.approx(1 - 1.3 * (0.3 + 1.645 * 0.01) - 0.02)


def test_where_the_shape_was_changed_the_rule_is_another() -> None:
    found = Certificate.of(Measured(0.04, 0.002, 0.7, 0.01), changed=True)
    assert found.loss == pytest.approx(0.4 * 4)
    assert found.loss_bound == pytest.approx(2.5 * 0.4 * (4 + 1.645 * 0.2) + 0.5)


def test_copies_that_lose_much_raise_estimate_and_bound_and_those_that_lose_little_do_not() -> None:
    without, few, many = (Certificate.of(Measured(0.04, 0.002, 0.7, 0.01, copies)) for copies in (0.0, 0.02, 0.05))
    assert few == without
    assert many.loss == pytest.approx(0.05 * 10**1.5) and many.loss_bound > 2 * many.loss
    assert many.neighbors_bound == without.neighbors_bound


def test_rounding_below_zero_is_no_loss() -> None:
    found = Certificate.of(Measured(-2e-16, 0.0, 1.0, 0.0, -1e-16))
    assert (found.loss, found.loss_bound, found.neighbors_bound) == (0.0, 0.15, 0.98)
