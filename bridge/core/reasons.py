"""The service's name as the protos have it."""

from typing import Final

from ollmbridge.v1.chat_completion_service_pb2 import DESCRIPTOR

__all__ = ["SERVICE_NAME"]

SERVICE_NAME: Final = DESCRIPTOR.services_by_name["ChatCompletionService"].full_name
