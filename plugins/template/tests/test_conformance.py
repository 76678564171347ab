"""Every claim that stainbridge makes about a segmenter, one test each."""

import pytest


@pytest.mark.stainbridge_conformance("segmenter", "TEMPLATE_NAME")
def test_it_keeps_the_contract(conformance):
    conformance()
