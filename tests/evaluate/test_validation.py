"""FID's own validation: what rises, from where on it is noticed."""

import pytest

from medray.evaluate.chapter_validation import _noticed


@pytest.mark.parametrize(
    "values, strength",
    [
        ([10.0, 11, 12, 13, 14, 15], 0.2),
        ([10.0, 9, 12, 13, 14, 15], 0.4),
        ([10.0, 11, 9, 13, 14, 15], 0.6),
        ([10.0, 9, 9, 9, 9, 15], 1.0),
        ([10.0, 11, 12, 13, 14, 9], None),
    ],
)
def test_a_fault_is_noticed_from_where_every_figure_lies_above(values, strength):
    assert _noticed(values) == strength
