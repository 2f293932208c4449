"""The order of the modules: each imports only from lower levels; and importing the package loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import focus_rag

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "focus_rag"
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "abstention",
        "search.bm25",
        "fitting.estimate",
        "fitting.more_than_chance",
        "attention.attention_call",
        "errors",
        "fitting.head_inputs",
        "model_turns",
        "probing",
        "sentences",
        "special_text",
        "weights_digest",
        "whole_files",
    ),
    (
        "passages",
        "score_order",
        "confidence",
        "json_files",
        "held_schema",
        "attention.formulas",
        "query_layouts",
        "published_files",
        "turns",
    ),
    ("noise", "alpha", "answer_grammar", "attention.shares", "locating", "model_layout", "shared_words"),
    ("evidence", "built_prompt", "prompt_layout", "passage_ranking", "fingerprint"),
    ("score_split",),
    (
        "attention.tap",
        "prompting",
        "adapters.prompt_scan",
        "profile",
        "search.documents",
        "search.embedders",
        "examples",
        "answers",
    ),
    (
        "focus_choice",
        "answer_report",
        "fitting.calm_examples",
        "fitting.grading",
        "attention.measuring",
        "search.passage_index",
        "adapters.retrieval_records",
        "decoding",
        "streams",
        "token_rows",
        "fitting.teacher_forcing",
        "embedded",
    ),
    (
        "attention.splitting",
        "attention.recording",
        "adapters.passage_registry",
        "fitting.cloze_examples",
        "fitting.head_scoring",
    ),
    ("attention.turning", "attention.query_site_check", "prepared_request"),
    ("attention.steering", "request_preparation"),
    ("batch_generation", "baking"),
    ("generator",),
    ("fitting.recorded_heads", "fitting.asking", "answer_trace", "fitting.polishing", "adapters.calls"),
    (
        "fitting.alpha_sweep",
        "fitting.direction_training",
        "fitting.confidence_fitting",
        "fitting.oracle",
        "fitting.passage_order",
    ),
    ("fitting.alpha_fitting", "fitting.settings", "fitting.variants", "fitting.report_pictures"),
    ("fitting.steps", "fitting.report", "fitting.sweep_cells"),
    ("fitting.split_fitting", "fitting.answers"),
    ("fitting.context",),
    ("fitting.directions", "fitting.alpha_and_split"),
    ("fitting.fit", "export"),
)
"""Lowest first. `embedded` is its `__init__` alone (where the shipped model lies)."""
ON_TOP = ("evaluation", "embedded.", "serving", "cli")
"""Packages and recipes that may use any module above and are used by none of them."""
ROOMS: dict[str, set[str]] = {
    "attention": set(),
    "search": set(),
    "adapters": set(),
    "fitting": {"attention", "search"},
}
"""Packages within the levels, and which of each other they use. Their `__init__` only says what they are for."""
DEFERRED = {("answers", "focus_rag.answer_report")}
"""Calls upwards that are wanted: `Answer.to_html` hands itself to the page writer, imported when it is called."""
FORBIDDEN = {"langchain_core", "langchain", "llama_index", "integrations", "langchain_focus_rag", "llama_index_focus_rag", "examples", "tests", "benchmarks"}  # fmt: skip
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_on_top(name: str) -> bool:
    return name.startswith(ON_TOP)


def imported_names(source: str) -> set[str]:
    """Every module a file imports, inside functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add(f"focus_rag.<relative import in line {node.lineno}>")
            elif node.module == "focus_rag":
                found |= {f"focus_rag.{alias.name}" for alias in node.names}
            else:
                found.add(str(node.module))
    return found


def wrong_imports(name: str, source: str) -> list[str]:
    """Imports of focus_rag that go upwards or sideways."""
    wrong = []
    for imported in sorted(imported_names(source)):
        if not imported.startswith("focus_rag."):
            continue
        target = imported.removeprefix("focus_rag.")
        if target.startswith("__") or (name, imported) in DEFERRED:  # the version; the exceptions
            continue
        if is_on_top(target) or target not in LEVEL_OF or LEVEL_OF[target] >= LEVEL_OF[name]:
            wrong.append(imported)
    return wrong


@pytest.mark.parametrize(
    "file", [file for file in FILES if name_of(file) not in ("", *ROOMS) and not is_on_top(name_of(file))], ids=name_of
)
def test_a_module_imports_only_lower_levels(file):
    name = name_of(file)
    assert name in LEVEL_OF, f"focus_rag.{name} has no level yet: give it one in LEVELS"
    assert wrong_imports(name, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_only_the_rooms_it_may(room):
    opening = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(opening) and len(opening.body) == 1
    imported = set().union(
        *(imported_names(file.read_text(encoding="utf-8")) for file in (PACKAGE / room).glob("*.py"))
    )
    used = {name.split(".")[1] for name in imported if name.startswith("focus_rag.")}
    assert used & set(ROOMS) <= ROOMS[room] | {room}


def test_the_rule_catches_what_it_is_for():
    assert wrong_imports("attention.steering", "from focus_rag.generator import FocusGenerator") == [
        "focus_rag.generator"
    ]
    assert wrong_imports("attention.steering", "def f():\n    from focus_rag import fitting") == ["focus_rag.fitting"]
    assert wrong_imports("attention.steering", "import focus_rag.cli.ask") == ["focus_rag.cli.ask"]
    assert wrong_imports("attention.steering", "from .profile import FocusProfile") != []
    assert wrong_imports("attention.steering", "from focus_rag.profile import FocusProfile") == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: name_of(file) or "focus_rag")
def test_the_library_knows_no_framework_and_none_of_its_users(file):
    roots = {imported.split(".")[0] for imported in imported_names(file.read_text(encoding="utf-8"))}
    assert not roots & FORBIDDEN


@pytest.mark.parametrize(
    "module",
    [
        "focus_rag",
        "focus_rag.errors",
        "focus_rag.passages",
        "focus_rag.score_order",
        "focus_rag.noise",
        "focus_rag.alpha",
        "focus_rag.locating",
    ],
)
def test_importing_loads_no_torch(module):
    program = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'faiss', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_importing_patches_nothing():
    program = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as a\n"
        "before = (dict(a._local_mapping), dict(a._global_mapping))\n"
        "import focus_rag\n"
        "missing = [name for name in focus_rag.__all__ if getattr(focus_rag, name, None) is None]\n"
        "print(missing, before == (dict(a._local_mapping), dict(a._global_mapping)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[] True"


def test_serving_loads_no_training_code():
    program = (
        "import sys, focus_rag.serving.app; print(sorted(name for name in sys.modules if "
        "name.startswith('focus_rag.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.removeprefix("focus_rag.") for name in ast.literal_eval(done.stdout)}
    assert {name for name in loaded if name in LEVEL_OF and LEVEL_OF[name] > LEVEL_OF["generator"]} == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: name_of(file) or "focus_rag")
def test_no_drawer_modules(file):
    assert file.stem not in {"utils", "helpers", "base", "common"}


def test_no_module_hides_a_public_name() -> None:
    """An imported submodule becomes an attribute of the package, in front of a name that is resolved on first use."""
    assert not {
        name
        for name, home in focus_rag._HOMES.items()
        if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).exists()
    }
