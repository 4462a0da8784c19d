"""Embeddings: what the real client gets, and what is refused."""

import base64

import numpy as np
import pytest
from fakes import FakeFactory
from server_client import TOKEN, live

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client():
    with live(FakeFactory()) as (_, url), openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


def test_texts_and_token_ids_in_both_forms(client):
    """Guards the client's own default (base64), plain numbers, order, and what is counted."""
    ids = [16 + ord(letter) for letter in "abc"]
    single = client.embeddings.create(model="fake", input="abc")
    assert single.usage.model_dump() == {"prompt_tokens": 3, "total_tokens": 3}
    assert (single.object, single.model, len(single.data)) == ("list", "fake", 1)
    for given in (["abc", "d"], [ids, ids[:1]]):
        for encoding_format in ("float", "base64", openai.NOT_GIVEN):
            found = client.embeddings.create(model="fake", input=given, encoding_format=encoding_format)
            assert [one.index for one in found.data] == [0, 1]
            assert found.usage.total_tokens == sum(map(len, given))
            vector = found.data[0].embedding
            if encoding_format == "base64":
                vector = np.frombuffer(base64.b64decode(vector), "<f4")
            np.testing.assert_allclose(vector, single.data[0].embedding, rtol=1e-6)
    assert client.embeddings.create(model="fake", input=ids).usage.total_tokens == 3
    assert client.embeddings.create(model="fake", input="x", dimensions=4, user="me").data


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input": ""}, "input\\[0\\] is empty"),
        ({"input": []}, "1 to 2048"),
        ({"input": ["x"] * 2049}, "1 to 2048"),
        ({"input": ["x", ""]}, "input\\[1\\] is empty"),
        ({"input": [[1], []]}, "input\\[1\\] is empty"),
        ({"input": ["x", 1]}, "input\\[1\\] is neither"),
        ({"input": [[1, "x"]]}, "input\\[0\\] is neither"),
        ({"input": [[-1]]}, "input\\[0\\] is neither"),
        ({"input": [True]}, "input\\[0\\] is neither"),
        ({"input": {"a": 1}}, "str.*array"),
        ({"input": "x", "dimensions": 3}, "vectors have 4"),
        ({"input": "x", "encoding_format": "hex"}, "Invalid enum"),
        ({"input": "x", "model": "gpt"}, "the model here is 'fake'"),
        ({"input": "x", "extra_body": {"tools": [1]}}, "tool calls"),
    ],
)
def test_what_makes_no_sense_is_refused(client, fields, says):
    """Guards against vectors of something else than what was asked, and against a 5xx."""
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=says):
        client.embeddings.create(**{"model": "fake", **fields})
