"""The vectors of clients/vectors say what the bridge sends, and what a unary answer has."""

import json

import pytest

from bridge.core.chat import decode_reply
from tests.clients.vectors import render, write_json
from tests.kit import vectors
from tests.kit.vectors import read_client_vectors

ACCUMULATE = {vector["name"]: vector for vector in read_client_vectors("accumulate")}
PAIRS = {
    "recorded-llama-logprobs": "llama-logprobs",
    "recorded-llama-n2": "llama-n2",
    "recorded-llama-usage": "llama-basic",
    "recorded-llmock-usage": "llmock-basic",
    "recorded-tensorzero-raw-usage": "tensorzero-raw-usage",
    "recorded-tensorzero-two-tools": "tensorzero-two-tools",
}
"""A stream and the unary answer to the same request."""


@pytest.mark.parametrize("kind", ["accumulate", "failure"])
def test_bytes_are_those_that_the_bridge_sends(kind):
    assert (vectors.CLIENTS_FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8") == render(kind)


@pytest.mark.parametrize("kind", ["accumulate", "failure"])
def test_names_are_unique(kind):
    names = [vector["name"] for vector in read_client_vectors(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", PAIRS)
def test_response_of_a_stream_is_that_of_the_unary_answer(name):
    unary = write_json(decode_reply(vectors.read_answer("replies", PAIRS[name]).body))
    stream = ACCUMULATE[name]["response"]
    own = {"id", "created", "episode_id", "timings", "ollm_raw_usage", "usage"}  # of each call
    assert {key: item for key, item in stream.items() if key not in own} == {
        key: item for key, item in unary.items() if key not in own
    }
    own_usage = {"prompt_tokens_details"}  # what the cache had by then
    if "usage" in stream:  # else the caller did not ask
        assert {key: item for key, item in stream["usage"].items() if key not in own_usage} == {
            key: item for key, item in unary["usage"].items() if key not in own_usage
        }


def test_every_vector_says_what_it_is_about():
    for vector in (*read_client_vectors("accumulate"), *read_client_vectors("failure")):
        assert vector["about"]
        assert json.dumps(vector.get("response", vector.get("failure")))
