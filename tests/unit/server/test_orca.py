"""Tests of bridge/server/orca.py: the messages have the bytes of the published ones."""

import struct

from google.protobuf.duration_pb2 import Duration

from bridge.server import orca


def test_report_has_the_published_numbers():
    report = orca.LoadReport(rps_fractional=12.5, application_utilization=0.75)
    assert report.SerializeToString() == b"\x31" + struct.pack("<d", 12.5) + b"\x49" + struct.pack("<d", 0.75)
    assert report.DESCRIPTOR.full_name == "xds.data.orca.v3.OrcaLoadReport"


def test_request_has_the_published_numbers_and_may_have_more():
    interval = Duration(seconds=2).SerializeToString()
    more = b"\x12\x01a"  # request_cost_names = 2
    request = orca.LoadReportRequest.FromString(b"\x0a" + bytes([len(interval)]) + interval + more)
    assert request.report_interval.seconds == 2
    assert request.DESCRIPTOR.full_name == "xds.service.orca.v3.OrcaLoadReportRequest"
