"""Tests of bridge/core/media_type.py: which Content-Type counts if there are several."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.media_type import choose_media_type, get_charset, get_essence

CHOSEN = {
    "": "",
    "text/event-stream": "text/event-stream",
    "no type": "no type",
    "text/event-stream, text/event-stream": "text/event-stream",
    "text/event-stream, text/event-stream; charset=utf-8": "text/event-stream; charset=utf-8",
    "text/event-stream; charset=utf-8, text/event-stream": "text/event-stream; charset=utf-8",
    "text/event-stream;charset=utf-8,text/event-stream;charset=utf-8": "text/event-stream;charset=utf-8",
    "text/plain;charset=gbk, text/html": "text/html",
    'text/html;charset=gbk;a=b, text/html;x=","': 'text/html;x=","; charset=gbk',
    "text/html;charset=gbk, x/x, text/html": "text/html",
    "application/json, text/event-stream": "text/event-stream",
    "text/event-stream, application/json": "application/json",
    "text/event-stream, */*": "text/event-stream",
    "text/event-stream, ": "text/event-stream",
    "text/event-stream, cannot-parse": "text/event-stream",
    ",": ",",
    'text/html;a="x, text/plain': 'text/html;a="x, text/plain',
    'text/html;a="x, text/plain\\': 'text/html;a="x, text/plain\\',
    'text/html;a="\\", x", text/plain': "text/plain",
}
"""Some are the Fetch standard's own examples."""


@pytest.mark.parametrize(("header", "chosen"), CHOSEN.items())
def test_last_valid_media_type_counts(header, chosen):
    assert choose_media_type(header) == chosen


@given(st.text(alphabet='ab/;,"\\ =*charset', max_size=60))
def test_any_header_has_a_media_type(header):
    assert isinstance(choose_media_type(header), str)


def test_essence_is_the_type_without_its_parameters():
    assert get_essence(" Text/Event-Stream ; charset=utf-8") == "text/event-stream"


@pytest.mark.parametrize(
    ("media_type", "charset"),
    [("a/b", ""), ("a/b;charset=GBK", "GBK"), ('a/b; x=y; Charset="latin 1"', "latin 1"), ("a/b; xcharset=c", "")],
)
def test_charset_is_the_parameter_of_that_name(media_type, charset):
    assert get_charset(media_type) == charset
