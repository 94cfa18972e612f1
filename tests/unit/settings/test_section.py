"""Tests of bridge/settings/section.py: what holds for every section."""

import math

import pytest
from pydantic import ValidationError

from bridge.settings.section import Seconds, Section


class Times(Section):
    idle_s: Seconds = 1.0


@pytest.mark.parametrize("values", [{"idle": 1}, {"idle_s": 0}, {"idle_s": 86_401}, {"idle_s": math.inf}])
def test_unknown_name_and_a_value_out_of_bounds_are_refused(values):
    with pytest.raises(ValidationError):
        Times(**values)


def test_section_is_frozen():
    with pytest.raises(ValidationError):
        Times(idle_s=2).idle_s = 3
