"""Command lines explain every field of their settings."""

import argparse
from dataclasses import fields

import pytest

from usp_lab.options import add_fields, field_help
from usp_lab.rlcc_settings import RlccSettings
from usp_lab.sft_settings import SftSettings


@pytest.mark.parametrize("kind", [SftSettings, RlccSettings])
def test_every_field_has_an_option_that_says_what_it_is(kind):
    parser = argparse.ArgumentParser()
    add_fields(parser, kind)
    assert kind(**vars(parser.parse_args([]))) == kind()
    said, shown = field_help(kind), parser.format_help()
    assert {f.name for f in fields(kind)} - set(said) <= {"seed"}
    assert all(f"--{f.name.replace('_', '-')}" in shown for f in fields(kind))
    assert "(default: 1.0)" in shown.replace("\n", " ") or "default:" in shown


def test_names_before_a_colon_share_what_follows():
    class Some:
        """Title.

        Attributes:
            a, b: two things
                on two lines. c: a third; d: a fourth.
            e: 50 % of it.
        """

    assert field_help(Some) == {
        "a": "two things on two lines.",
        "b": "two things on two lines.",
        "c": "a third;",
        "d": "a fourth.",
        "e": "50 % of it.",
    }
