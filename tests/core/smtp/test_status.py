"""Where a reply has its enhanced status: in its place, or wherever servers write it; and what only looks like one."""

import pytest

from mailq.core.smtp.reply import make_reply


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("550 5.1.1 unknown", "5.1.1"),
        ("550 #5.1.0 Address rejected.", "5.1.0"),
        ("501 #5.1.1 nope", "5.1.1"),
        ("452 #4.3.1 temporary system resources exceeded", "4.3.1"),
        ("550 5.1.1: <jo> unknown", "5.1.1"),
        ("550 5.7.1 : nope", "5.7.1"),
        ("550 5.1.1<jo@x>... nope", "5.1.1"),
        ("550 [5.1.1] recipient does not exist here", "5.1.1"),
        ("550 nope (5.1.1)", "5.1.1"),
        ("550 nope (#5.1.1)", "5.1.1"),
        ("550 nope [#5.1.1]", "5.1.1"),
        ("550 nope: 5.1.1", "5.1.1"),
        ("550 sorry\n5.1.1 nope", "5.1.1"),
        ("550 Requested action not taken\nFor explanation visit us\n5.1.1 unknown recipient", "5.1.1"),
        ("550 sorry\nnope (5.1.1)", "5.1.1"),
        ("550 see (4.2.2) and (5.1.1)", "5.1.1"),
        ("450 nope (5.1.1)", None),
        ("550 #4.1.1 nope", None),
        ("550 4.1.1: nope", None),
        ("250 done (2.1.5)", None),
        ("550 5.1.1.7 is blocked", None),
        ("550 [5.1.1.7] is blocked", None),
        ("550 blocked: 5.1.1.7", None),
        ("550 (5.189.1.1) is blocked", None),
        ("554 mx.example Guard version: 5.1.1", None),
        ("554 Guard 5.1.1 says no", None),
        ("554 Guard v5.1.1 says no", None),
        ("550 [15.1.1] no", None),
        ("550 [5.9.1] no", None),
        ("550 5.1.1beta refuses", None),
    ],
)
def test_the_status_of_a_reply(text, status):
    code, _, rest = text.partition(" ")

    assert make_reply(int(code), rest.split("\n")).status == status


def test_a_status_in_its_place_is_no_part_of_the_text_and_elsewhere_it_is():
    assert make_reply(550, ["5.1.1 unknown"]).text == "unknown"
    assert make_reply(550, ["sorry", "5.1.1 nope"]).text == "sorry\nnope"
    assert make_reply(550, ["#5.1.1 nope"]).text == "#5.1.1 nope"
    assert make_reply(550, ["5.1.1: nope"]).text == "5.1.1: nope"


def test_a_status_in_its_place_is_told_even_where_its_class_is_another():
    """RFC 3463 section 2; `strange` tells of it, and the first digit of the code decides."""
    assert make_reply(550, ["4.1.1 nope"]).status == "4.1.1"
