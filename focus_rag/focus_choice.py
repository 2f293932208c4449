"""What is done to the model for one request: alpha of the focus directions, or passages to lean on by split softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from focus_rag.alpha import AlphaChoice, FixedAlpha
from focus_rag.answers import AlphaSetting, Request
from focus_rag.errors import InvalidInputError
from focus_rag.noise import signal_of
from focus_rag.passages import RetrievalSignal
from focus_rag.profile import FocusProfile
from focus_rag.score_split import ScoreSplit, SplitSetting

_MOST = 100.0
"""Largest alpha, either way: beyond it logits overflow before anything is steered, and with them the other rows of a
batch.
"""


@dataclass(frozen=True, slots=True)
class FocusChoice:
    """The interventions of one request, and why.

    Attributes:
        signal: What its retrieval tells, of the passages that stand in the prompt.
        alpha: Intervention factor of the focus directions.
        reason: For people.
        favoured: Indices of the passages that split softmax favours, the best first.
        tau: Its exponent; 1 where nothing is favoured.
    """

    signal: RetrievalSignal
    alpha: float
    reason: str
    favoured: tuple[int, ...] = ()
    tau: float = 1.0


def choose_focus(
    request: Request,
    shown: Sequence[int],
    profile: FocusProfile | None,
    alpha: AlphaSetting = "auto",
    split: SplitSetting = "auto",
) -> FocusChoice:
    """Choose alpha and split for a request.

    What is left to the library is one or the other: where the profile leans on passages and scores, or the words of the
    question, tell them apart, alpha is 0, and else what the profile's policy says. What is said explicitly holds: a
    number for alpha leaves the profile's split out, and a number with a `ScoreSplit` has both.

    Args:
        request: Its own `alpha` and `split` come before the settings below.
        shown: Indices of the passages in the prompt, in the order in which they stand there.
        profile: Contextual heads, directions, policy and split; None leaves the model bare.
        alpha: Where the request says nothing.
        split: Where the request says nothing.

    Raises:
        InvalidInputError: A setting cannot be used, or needs a profile.
    """
    alpha = alpha if request.alpha is None else request.alpha
    split = split if request.split is None else request.split
    retrieved = signal_of(
        request.passages,
        higher_is_better=request.higher_is_better,
        score_kind=request.score_kind,
        noise=request.noise,
        shown=shown,
    )
    # Noise speaks of the whole retrieval; what there is to choose from are the passages in this prompt.
    signal = replace(
        retrieved, n_passages=len(shown), in_order=retrieved.in_order if request.in_order is None else request.in_order
    )
    choice = _alpha(alpha, signal, profile)
    leaning = _split(split, alpha, profile)
    if leaning is None:
        return FocusChoice(signal, choice.alpha, choice.reason)
    found = leaning.favoured(
        request.passages,
        shown,
        request.retrieved_for,
        higher_is_better=request.higher_is_better,
        score_kind=request.score_kind,
    )
    if not found.passages:
        return FocusChoice(signal, choice.alpha, choice.reason)
    leans = f"split softmax on {found.in_words}, tau {leaning.tau:g}"
    if alpha == "auto":
        return FocusChoice(signal, 0.0, f"{leans}, instead of focus directions", found.passages, leaning.tau)
    return FocusChoice(signal, choice.alpha, f"{choice.reason}; {leans}", found.passages, leaning.tau)


def _alpha(setting: AlphaSetting, signal: RetrievalSignal, profile: FocusProfile | None) -> AlphaChoice:
    if isinstance(setting, str):
        if setting != "auto":
            raise InvalidInputError(f"alpha must be a number, 'auto' or an alpha policy; got {setting!r}.")
        if profile is None:
            return AlphaChoice(0.0, "no profile: the model is left as it is")
        return profile.policy.choose(signal)
    if isinstance(setting, Real) and not isinstance(setting, bool):
        try:
            setting = float(setting)
        except OverflowError as error:
            raise InvalidInputError("alpha must be finite; got a whole number beyond all floats.") from error
    # Arrays of numpy have a method `choose`, too.
    is_policy = hasattr(setting, "choose") and not hasattr(setting, "dtype")
    if isinstance(setting, bool) or not (isinstance(setting, float) or is_policy):
        raise InvalidInputError(f"alpha must be a number, 'auto' or an alpha policy; got {setting!r:.80}.")
    if isinstance(setting, float):
        if setting != setting or abs(setting) == float("inf"):
            raise InvalidInputError(f"alpha must be finite; got {setting!r}.")
        choice = FixedAlpha(alpha=float(setting)).choose(signal)
    else:
        choice = setting.choose(signal)
    if not abs(choice.alpha) <= _MOST:
        raise InvalidInputError(
            f"alpha must lie between -{_MOST:g} and {_MOST:g}; got {choice.alpha!r}. 1 is a whole direction."
        )
    if choice.alpha and profile is None:
        raise InvalidInputError(
            "alpha other than 0 needs a profile: pass profile=..., or fit one with `focus-rag fit`."
        )
    return choice


def _split(setting: SplitSetting, alpha: AlphaSetting, profile: FocusProfile | None) -> ScoreSplit | None:
    if isinstance(setting, ScoreSplit):
        if profile is None:
            raise InvalidInputError(
                "A split acts on contextual heads and needs a profile: pass profile=..., or fit one with `focus-rag "
                "fit`."
            )
        return setting
    if setting not in ("auto", "off"):
        raise InvalidInputError(f"split must be a ScoreSplit, 'auto' or 'off'; got {setting!r}.")
    return profile.split if setting == "auto" and alpha == "auto" and profile is not None else None
