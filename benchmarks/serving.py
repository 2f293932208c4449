"""What the server costs beside the generator alone, and what requests that come at the same time gain by going
together.

The demo's questions, 20 passages each, over a real server on this machine; every round takes all ways in random order,
and ratios are to the generator called directly in the same round.

python -m benchmarks.serving --output benchmarks/results/serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from benchmarks.capturing import write_result
from focus_rag import FocusGenerator
from focus_rag.cli.demo import read_questions
from focus_rag.embedded import demo_folder
from focus_rag.search.passage_index import PassageIndex
from focus_rag.serving.app import create_app

CLIENTS = (1, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--output", type=Path, help="write the JSON here")
    options = parser.parse_args()
    folder = demo_folder()
    index = PassageIndex.from_folder(folder)
    asked = [
        (one.question, index.search(one.question, 20))
        for one in read_questions(folder / "questions.jsonl")[: options.questions]
    ]
    generator = FocusGenerator.from_pretrained()
    server = uvicorn.Server(
        uvicorn.Config(create_app(generator), port=0, log_level="warning", ws="none", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    bodies = [
        {
            "question": question,
            "score_kind": "cosine",
            "max_tokens": 32,
            "passages": [{"text": p.text, "title": p.title, "score": p.score} for p in passages],
        }
        for question, passages in asked
    ]

    def directly() -> None:
        for question, passages in asked:
            generator.answer(question, passages, score_kind="cosine", max_new_tokens=32)

    ways: dict[str, Any] = {"generator alone": directly}
    ways |= {
        f"server, {clients} at a time": lambda clients=clients: asyncio.run(ask(address, bodies, clients))
        for clients in CLIENTS
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    directly()
    for _ in range(options.rounds):
        for name in random.sample(list(ways), len(ways)):
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
    server.should_exit = True
    thread.join()
    alone = seconds["generator alone"]
    result = {
        name: {
            "seconds_per_answer": round(statistics.median(taken) / len(asked), 4),
            "ratio": [round(one / other, 3) for one, other in zip(taken, alone, strict=True)],
        }
        for name, taken in seconds.items()
    }
    write_result({"questions": len(asked), "rounds": options.rounds, "ways": result}, options.output)


async def ask(address: str, bodies: list[dict[str, Any]], clients: int) -> None:
    """Send all requests, so many at a time."""
    free = asyncio.Semaphore(clients)

    async def one(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        async with free:
            (await http.post("/v1/answers", json=body)).raise_for_status()

    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        await asyncio.gather(*(one(http, body) for body in bodies))


if __name__ == "__main__":
    main()
