"""Split softmax (Zhu et al., arXiv 2503.23306) on chosen passages: on the gold ones the upper anchor of attention steering, on the
best scored ones what a user can do with the same heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Batch, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask
from focus_rag.evaluation.methods.retrieval_rules import PassageChoice, chosen_passages
from focus_rag.splitting import split_softmax


@dataclass(frozen=True, slots=True)
class Split:
    """The chosen passages get mass `p ** tau` on the contextual heads.

    Attributes:
        which: The chosen passages.
        tau: Exponent.
        with_auto: Whether focus directions act as well, at the alpha of the profile's policy.
    """

    which: PassageChoice = "gold"
    tau: float = 0.1
    with_auto: bool = False
    needs_profile: bool = True

    @property
    def oracle(self) -> bool:
        return self.which == "gold"

    @property
    def name(self) -> str:
        tau = "" if self.tau == Split().tau else f", tau={self.tau:g}"
        return f"split softmax, {self.which}{tau}{', with auto' if self.with_auto else ''}"

    @property
    def note(self) -> str:
        return (
            f"Contextual heads give the passages ({self.which}) the mass p ** {self.tau:g} (split softmax, Zhu et al., arXiv 2503.23306; "
            "their tau is 0.1 and their passages the gold ones)."
            + (" Beside focus at the alpha of the profile's policy." if self.with_auto else "")
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        chosen = chosen_passages(case, self.which)
        alpha = engine.auto_alpha(case) if self.with_auto else 0.0
        return Ask(case, f"{self.name} {chosen}" if chosen or alpha else BARE_SETTING)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        def intervene(batch: Batch) -> AbstractContextManager[Any]:
            spans = batch.spans_of(lambda case: chosen_passages(case, self.which))
            if not any(spans):
                return nullcontext()
            # On scored passages as `ScoreSplit` does it, from where the passages end; on gold ones as published.
            ends = [prompt.after_passages_in(batch.length) for prompt in batch.prompts]
            return split_softmax(
                engine.model, engine.heads, spans, batch.length, tau=self.tau, first_row=None if self.oracle else ends
            )

        return engine.answer(cases, alpha="auto" if self.with_auto else 0.0, intervene=intervene, edits_weights=True)
