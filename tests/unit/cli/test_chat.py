"""Tests of bridge/cli/chat.py: choices of a stream in turn, exit codes, and tool calls joined from fragments."""

from itertools import pairwise

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.chat import EXIT_CODES, StreamPrinter, ToolCallJoiner
from ollmbridge.v1.chat_pb2 import ChoiceDelta, FunctionCallDelta, MessageDelta, ToolCallDelta
from tests.kit.vectors import decode_chunks, read_client_vectors


def test_every_code_with_an_exit_code_is_one_of_grpc():
    assert EXIT_CODES.keys() <= grpc.StatusCode.__members__.keys()
    assert not {0, 1, 2} & set(EXIT_CODES.values())  # OK, any other failure, usage


def make_delta(index: int, **members) -> ChoiceDelta:
    return ChoiceDelta(index=index, delta=MessageDelta(**members))


def test_choices_are_printed_in_turn(capsys):
    printer = StreamPrinter()
    for content in ("a", "b"):
        printer.add([make_delta(0, content=content), make_delta(1, content=content.upper())])
    assert capsys.readouterr().out == "ab"
    printer.end()
    assert capsys.readouterr().out == "\nAB\n"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_goes_to_standard_error(key, capsys):
    printer = StreamPrinter()
    printer.add([make_delta(0, **{key: "Let me "})])
    printer.add([make_delta(0, **{key: "think."})])
    printer.add([make_delta(0, content="Yes")])
    printer.end()
    assert capsys.readouterr() == ("Yes\n", "Let me think.\n")


def test_tool_calls_are_printed_at_the_end_of_their_choice(capsys):
    printer = StreamPrinter()
    printer.add([make_delta(0, tool_calls=[make_fragment(0, "a", "f", "{")])])
    printer.add([make_delta(0, tool_calls=[make_fragment(0, arguments="}")])])
    printer.end()
    assert capsys.readouterr().out == "f({})\n"


def make_fragment(index: int | None, id_: str = "", name: str = "", arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index=index, id=id_, function=FunctionCallDelta(name=name, arguments=arguments))


def test_fragments_are_joined_by_index():
    joiner = ToolCallJoiner()
    joiner.add([make_fragment(1, "b", "g", "{"), make_fragment(0, "a", "f", "[")])
    joiner.add([make_fragment(0, arguments="]")])
    joiner.add([make_fragment(1, arguments="}")])
    calls = [(call.id, call.function.name, call.function.arguments) for call in joiner.join()]
    assert calls == [("a", "f", "[]"), ("b", "g", "{}")]


def test_empty_id_and_name_are_ignored():
    joiner = ToolCallJoiner()
    joiner.add([make_fragment(0, "a", "f"), make_fragment(0, "", "", "{}")])
    assert joiner.join()[0].id == "a"
    assert joiner.join()[0].function.name == "f"
    assert joiner.join()[0].type == "function"


def test_fragments_without_an_index_are_told_apart_by_their_ids():
    joiner = ToolCallJoiner()
    fragments = [("a", "f", "["), ("", "", "]"), ("b", "g", "{"), ("", "", "}")]
    joiner.add(make_fragment(None, id_, name, arguments) for id_, name, arguments in fragments)
    calls = [(call.id, call.function.name, call.function.arguments) for call in joiner.join()]
    assert calls == [("a", "f", "[]"), ("b", "g", "{}")]


@pytest.mark.parametrize("vector", read_client_vectors("accumulate"), ids=lambda vector: vector["name"])
def test_calls_are_those_of_the_clients_kits(vector):
    expected = {
        choice["index"]: [
            (call["id"], call["function"]["name"], arguments if isinstance(arguments, str) else "")
            for call in choice["message"].get("tool_calls", ())
            if "function" in call
            for arguments in [call["function"]["arguments"]]
        ]
        for choice in vector["response"].get("choices", ())
    }
    joiners = {index: ToolCallJoiner() for index in expected}
    for chunk in decode_chunks(vector):
        for choice in chunk.choices:
            joiners[choice.index].add(choice.delta.tool_calls)
    assert expected == {
        index: [(call.id, call.function.name, call.function.arguments) for call in joiner.join() if call.function.name]
        for index, joiner in joiners.items()
    }


@given(arguments=st.text(), cuts=st.lists(st.integers(0, 40)))
def test_arguments_cut_at_any_place_are_joined(arguments, cuts):
    places = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
    joiner = ToolCallJoiner()
    for begin, end in pairwise(places):
        joiner.add([make_fragment(0, arguments=arguments[begin:end])])
    assert joiner.join()[0].function.arguments == arguments
