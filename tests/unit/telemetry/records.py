"""A call's record and a caller's trace, for the tests of telemetry."""

from bridge.telemetry import CallRecord

RECORD = CallRecord(
    method="StreamChatCompletion",
    code="OK",
    reason="",
    model="echo",
    request_id="r-1",
    peer="ipv4:127.0.0.1:1",
    duration_s=1.5,
    upstream_status=200,
    upstream_s=1.4,
    first_chunk_s=0.4,
    chunks=5,
    prompt_tokens=20,
    completion_tokens=11,
    request_bytes=27,
    response_bytes=177,
    translation_s=0.0002,
    first_token_s=0.4,
)
UNARY = {"method": "CreateChatCompletion", "first_chunk_s": None, "first_token_s": None, "chunks": 0}


def make_record(**fields) -> CallRecord:
    """Return RECORD with other fields."""
    return RECORD._replace(**fields)


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
