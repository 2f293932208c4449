"""Write the demo documents: `python -m focus_rag.embedded.demo_documents DIR`.

They are about entities of the test split, of which the embedded model has seen none, in the plain register that it
reads best.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from focus_rag.embedded import world

_SEED = 20
_TELLING = world.Telling(rich=0.0, title_share=1.0)
_SIBLINGS = 9
_ASKED = 5
_KINDS = ("organisation", "product", "person", "incident", "policy", "release", "place")


def write_demo(folder: str | Path) -> int:
    """Write a small corpus of confusable documents and five questions for each family of them.

    Args:
        folder: Gets `NN-name.md` files (a heading, then the text) and `questions.jsonl` with `question`, `answers` and
            `document`.

    Returns:
        The number of documents.
    """
    folder = Path(folder)
    rng = random.Random(_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    questions: list[dict[str, Any]] = []
    number = 0
    for kind in _KINDS:
        head = world.new_entity(rng, "test", kind)
        first = len(questions)
        for entity in (head, *(world.sibling(rng, "test", head) for _ in range(_SIBLINGS))):
            keys = rng.sample(list(entity.facts), 4)
            told = [keys[:2], keys[2:]] if entity is head else [keys[:3]]
            for part in told:
                number += 1
                name = f"{number:02d}-{entity.name.lower().replace(' ', '-').replace('.', '-')}.md"
                text = world.passage(rng, "test", entity, part, _TELLING).text
                (folder / name).write_text(f"# {entity.name}\n\n{text}\n", encoding="utf-8")
                asked = rng.choice(part)
                if len(questions) - first == _ASKED:
                    continue
                questions.append(
                    {
                        "question": world.question(rng, "test", entity, asked, _TELLING),
                        "answers": [world.plain_statement(entity, asked), entity.facts[asked]],
                        "document": name,
                    }
                )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return number


if __name__ == "__main__":
    sys.stdout.write(f"{write_demo(Path(sys.argv[1]))} documents written to {sys.argv[1]}\n")
