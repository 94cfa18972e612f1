"""The messages of ORCA, Open Request Cost Aggregation: how a server tells its clients' balancers its load.

The names and numbers are those of xds/data/orca/v3/orca_load_report.proto and xds/service/orca/v3/orca.proto in
github.com/cncf/xds, of which these are the fields that the bridge uses. They are in a pool of their own, so that
another library may bring the whole.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, duration_pb2, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

__all__ = ["METHOD", "SERVICE", "TRAILER", "LoadReport", "LoadReportRequest"]

TRAILER: Final = "endpoint-load-metrics-bin"
SERVICE: Final = "xds.service.orca.v3.OpenRcaService"
METHOD: Final = "StreamCoreMetrics"

_REPORT: Final = "xds.data.orca.v3.OrcaLoadReport"
_REQUEST: Final = "xds.service.orca.v3.OrcaLoadReportRequest"


def _add_message(pool: DescriptorPool, full_name: str, *fields: FieldDescriptorProto) -> type[Message]:
    package, _, name = full_name.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(name=f"{full_name}.proto", package=package, syntax="proto3")
    file.dependency.append(duration_pb2.DESCRIPTOR.name)
    file.message_type.add(name=name, field=fields)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


def _double(name: str, number: int) -> FieldDescriptorProto:
    label, kind = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.TYPE_DOUBLE
    return FieldDescriptorProto(name=name, number=number, label=label, type=kind)


_POOL: Final = DescriptorPool()
_POOL.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)

LoadReport: Final[Any] = _add_message(
    _POOL, _REPORT, _double("rps_fractional", 6), _double("application_utilization", 9)
)
LoadReportRequest: Final[Any] = _add_message(
    _POOL,
    _REQUEST,
    FieldDescriptorProto(
        name="report_interval",
        number=1,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".google.protobuf.Duration",
    ),
)
