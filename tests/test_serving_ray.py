"""The same server behind Ray Serve; runs where ray is installed (extra `[ray]`)."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from focus_rag import FocusGenerator, Passage
from focus_rag.errors import InvalidInputError

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

QUESTION = "Who is the mayor of Ashford?"
TEXTS = ["The mayor of Ashford is Ann Cole.", "The mayor of Barford is Jo Reed.", "The mayor of Camford is Al Lane."]


@pytest.fixture(scope="module")
def address():
    from focus_rag.serving.ray_serve import build

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": 8765})
    serve.run(build({"name": "reader", "api_key": "k", "most_requests": "8"}), route_prefix="/")
    yield "http://127.0.0.1:8765"
    serve.shutdown()
    ray.shutdown()


def test_replicas_answer_as_the_generator_does(address):
    expected = FocusGenerator.from_pretrained().answer(QUESTION, [Passage(text) for text in TEXTS])
    body = {"question": QUESTION, "passages": [{"text": text} for text in TEXTS]}

    async def ask():
        async with httpx.AsyncClient(base_url=address, headers={"Authorization": "Bearer k"}, timeout=60) as http:
            replies = await asyncio.gather(*(http.post("/v1/answers", json=body) for _ in range(4)))
            async with http.stream("POST", "/v1/answers", json={**body, "stream": True}) as stream:
                lines = [line async for line in stream.aiter_lines()]
            return replies, lines

    replies, lines = asyncio.run(ask())
    assert {reply.json()["choices"][0]["message"]["content"] for reply in replies} == {expected.text}
    assert {reply.json()["focus_rag"]["alpha"] for reply in replies} == {expected.alpha}
    assert lines[-2] == "data: [DONE]"
    assert httpx.post(f"{address}/v1/answers", json=body).status_code == 401


@pytest.mark.parametrize(
    "arguments", [{"replicas": 0}, {"modle": "x"}, {"gpus": "many"}, {"host": "0.0.0.0"}, {"api_key": "two words"}]
)
def test_arguments_that_are_refused(arguments):
    from focus_rag.serving.ray_serve import build

    with pytest.raises(InvalidInputError, match="The server cannot be set up"):
        build(arguments)


def test_what_a_replica_does_not_take_is_told_so_and_its_health_is_told_meanwhile(address):
    async def ask():
        async with httpx.AsyncClient(base_url=address, headers={"Authorization": "Bearer k"}, timeout=60) as http:
            body = {"prompt": "The mayor", "max_tokens": 300}
            asked = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(20)]
            await asyncio.sleep(0.2)
            health = await http.get("/health")
            answered_before_health = sum(one.done() for one in asked)
            return health, answered_before_health, [reply.status_code for reply in await asyncio.gather(*asked)]

    health, answered, statuses = asyncio.run(ask())
    assert health.status_code == 200 and answered < 20
    assert sorted(set(statuses)) == [200, 503] and statuses.count(200) >= 8
