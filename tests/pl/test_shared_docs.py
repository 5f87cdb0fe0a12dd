"""Parameters that plots describe in the same words reach every docstring."""

from __future__ import annotations

import re

import pytest

import stmsi


@pytest.mark.parametrize("name", stmsi.pl.__all__)
def test_every_part_is_filled_in(name):
    doc = getattr(stmsi.pl, name).__doc__
    assert "%(" not in doc
    assert re.search(r"^ *return_fig\n +Whether to return the figure", doc, re.MULTILINE)
    assert doc.count("Returns\n") == 1
