"""The schemas of protos/, compiled when they are first needed: no generated code of others' services is kept here.

The messages live in protobuf's default pool, so that `google.protobuf.Any` and protobuf's JSON form know them.
"""

import functools
import tempfile
from pathlib import Path

from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

_PROTOS = Path(__file__).parent / "protos"
_WELL_KNOWN = Path(protoc.__file__).parent / "_proto"


@functools.cache
def load(name: str) -> FileDescriptor:
    """Return the descriptor of a file of protos/."""
    with tempfile.NamedTemporaryFile(suffix=".binpb") as compiled:
        includes = (f"-I{_PROTOS}", f"-I{_WELL_KNOWN}")
        code = protoc.main(["protoc", *includes, f"--descriptor_set_out={compiled.name}", name])
        assert code == 0, f"{name} can't be compiled"
        files = FileDescriptorSet.FromString(Path(compiled.name).read_bytes())
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(name)


def get_message(name: str, message: str) -> type[Message]:
    """Return the class of a message of a file of protos/."""
    return GetMessageClass(load(name).message_types_by_name[message])
