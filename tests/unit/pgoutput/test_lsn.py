"""LSN text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_localsync.pgoutput.lsn import Lsn
from tests.vectors import vectors


@pytest.mark.parametrize("vector", vectors("lsn_text"))
def test_vector(vector):
    assert Lsn.parse(vector["pg_lsn"]).padded() == vector["expected"]


@pytest.mark.parametrize("text", ["", "16", "/", "16/", "/16", "123456789/0", "0/123456789", "g/0", "0/0/0"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"LSN|invalid literal"):
        Lsn.parse(text)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_both_text_forms_are_read_back_and_padded_text_sorts_by_position(first, second):
    first, second = Lsn(first), Lsn(second)

    assert Lsn.parse(str(first)) == Lsn.parse(first.padded()) == first
    assert (first.padded() < second.padded()) == (first < second)
