"""Tests of bridge/server/methods.py: a table of methods is what the descriptor says."""

import pytest

from bridge.server.methods import list_methods
from bridge.server.service import ChatCompletionService
from bridge.settings import UpstreamSettings
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest


def test_methods_of_the_chat_service_are_a_reply_and_a_stream():
    service = ChatCompletionService(None, UpstreamSettings())
    methods = list_methods(service)
    assert {name: method.is_stream for name, method in methods.items()} == {
        "CreateChatCompletion": False,
        "StreamChatCompletion": True,
    }
    assert {method.request for method in methods.values()} == {CreateChatCompletionRequest}
    assert methods["StreamChatCompletion"].run == service.StreamChatCompletion


def test_service_that_lacks_a_method_is_refused():
    class Lacking:
        DESCRIPTOR = ChatCompletionService.DESCRIPTOR

        async def CreateChatCompletion(self, request, call): ...

    with pytest.raises(AttributeError, match="StreamChatCompletion"):
        list_methods(Lacking())
