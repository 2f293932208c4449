"""Which questions a run asks in which cell, which it chooses by, and which it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case, CaseSource, Cell, EmbeddedCases, FileCases, cells_of
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.settings import EvalSettings

FITTED_ON = "the profile was fitted on it"
TOO_LONG = "the question alone does not fit the model's window"
_VAIN_DRAWS = 16  # times as many as are asked for
_DEV_PART = 5  # of a file without dev questions of its own, one question in so many is for choosing


@dataclass(frozen=True)
class Plan:
    """The cells that have questions, with their questions.

    Attributes:
        cases: By cell, in order.
        main: The headline cell.
        empty: Cells that have none.
    """

    cases: Mapping[Cell, tuple[Case, ...]]
    main: Cell
    empty: tuple[Cell, ...]


class Screen:
    """Admits the questions that can be asked and that the profile was not fitted on, and counts the others by reason.

    Args:
        engine: What answers, with its profile.
    """

    def __init__(self, engine: Engine) -> None:
        provenance = {} if engine.profile is None else engine.profile.provenance
        lists = [names for entry in ("trained_on", "chosen_on") if isinstance(names := provenance.get(entry), list)]
        self._fitted_on = {str(name) for names in lists for name in names}
        self._engine = engine
        self._reasons: dict[str, str | None] = {}

    def admits(self, case: Case) -> bool:
        """Whether a case is to be asked."""
        key = case.example.key
        if key not in self._reasons:
            # A profile names an example by the first twelve digits of its key.
            is_known = any(one[:12] in self._fitted_on for one in case.keys)
            self._reasons[key] = FITTED_ON if is_known else None if self._engine.fits(case) else TOO_LONG
        return self._reasons[key] is None

    def count(self, source: CaseSource | None) -> None:
        """Look at every question of a file, so that the count does not depend on which ones are drawn."""
        for case in source.all if isinstance(source, FileCases) else ():
            self.admits(case)

    @property
    def left_out(self) -> dict[str, int]:
        """Number of questions that were not admitted, by reason."""
        return dict(Counter(reason for reason in self._reasons.values() if reason is not None))

    @property
    def told(self) -> str:
        """The same in words, to follow a sentence; empty where all were admitted."""
        reasons = "; ".join(f"{reason} ({n})" for reason, n in self.left_out.items())
        return f" Left out: {reasons}." if reasons else ""


def reported_and_dev(source: CaseSource, dev: CaseSource | None) -> tuple[CaseSource, CaseSource | None]:
    """What is reported on, and what tuned methods are chosen by; None where nothing is left for that."""
    if dev is not None:
        return source, dev
    if not isinstance(source, FileCases):
        return source, EmbeddedCases("dev", source.rich if isinstance(source, EmbeddedCases) else 0.0)
    # By the question's hash, so that a question falls on the same side in every file.
    is_dev = [int(case.example.key, 16) % _DEV_PART == 0 for case in source.all]
    for_dev = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if chosen)
    rest = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if not chosen)
    if not for_dev or not rest:
        return source, None
    return (
        FileCases(source.name, rest, source.skipped),
        FileCases(f"one question in {_DEV_PART} of {source.name}", for_dev, {}),
    )


def _first(
    source: CaseSource, cell: Cell, limit: int | None, seed: int, is_wanted: Callable[[Case], bool]
) -> tuple[Case, ...]:
    """The first `limit` wanted questions of a cell: more are drawn for those that are not, as long as that brings new
    ones, and some of very many are wanted.
    """
    factor, known = 1, set[str]()
    while True:
        drawn = source.cases(cell, None if limit is None else factor * limit, seed)
        found = tuple(case for case in drawn if is_wanted(case))
        keys = {case.example.key for case in drawn}
        # Generated questions are new ones without end.
        is_vain = not found and factor >= _VAIN_DRAWS and not isinstance(source, FileCases)
        if limit is None or len(found) >= limit or len(found) == len(drawn) or keys == known or is_vain:
            return found[:limit]
        factor, known = 2 * factor, keys


def planned(source: CaseSource, settings: EvalSettings, screen: Screen) -> Plan:
    """The questions of every cell; the headline cell is the one of `main_count` passages and most noise that has any.

    Raises:
        InvalidInputError: No cell has a question.
    """
    found: dict[Cell, tuple[Case, ...]] = {}
    most = max(settings.limit or 0, settings.main_limit or 0) if settings.limit else None

    def fill(cells: Iterable[Cell]) -> None:
        found.update(
            {cell: _first(source, cell, most, settings.seed, screen.admits) for cell in cells if cell not in found}
        )

    grid = cells_of(settings.counts, settings.noises)
    fill(grid)
    usable = [cell for cell in grid if found[cell]]
    if not usable:
        raise InvalidInputError(
            f"{source.name} has no question for any of the cells {', '.join(cell.key for cell in grid)}: lower "
            f"--counts, or take the passages as they come (--counts all).{screen.told}"
        )
    main = max(usable, key=lambda cell: (cell.count == settings.main_count, cell.count or 0, cell.noise or 0.0))
    fill(
        cells_of(
            settings.counts, settings.noises, settings.positions,
            main=main, gold_missing=settings.gold_missing, shuffled_scores=settings.shuffled_scores,
            without_scores=settings.without_scores,
        )
    )  # fmt: skip
    cases = {cell: some if cell == main else some[: settings.limit] for cell, some in found.items() if some}
    return Plan(cases, main, tuple(cell for cell, some in found.items() if not some))


def dev_questions(dev: CaseSource | None, plan: Plan, settings: EvalSettings, screen: Screen) -> tuple[Case, ...]:
    """Questions of the headline cell to choose tuned methods by, none of which is reported on."""
    if dev is None:
        return ()
    reported = {case.example.key for cases in plan.cases.values() for case in cases}
    return _first(
        dev, plan.main, settings.tune_limit, settings.seed + 1,
        lambda case: case.example.key not in reported and screen.admits(case),
    )  # fmt: skip
