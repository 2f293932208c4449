"""Focus a model: shift the queries of its contextual heads while a context is open.

The published method adds `alpha * d_q` to the queries and `alpha * d_k` to the keys of a head after RoPE. The key
term adds one constant to every logit of a row, which softmax removes, so shifting the query is the whole method.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from focus_rag.attention.formulas import rows_of
from focus_rag.attention.query_site_check import check_query_site
from focus_rag.attention.tap import HOOKS_LOCK, AttentionTap
from focus_rag.attention.turning import Turning
from focus_rag.errors import AttachError, InvalidInputError, UnsupportedModelError
from focus_rag.model_layout import LayerLayout, ModelLayout, Site
from focus_rag.profile import FocusProfile
from focus_rag.query_layouts import QueryFormat, laid_out

Alpha = float | Sequence[float] | Tensor
PassagesAt = int | Sequence[int] | Tensor


class FocusNotAppliedWarning(UserWarning):
    """A focus context was left without any forward pass of the model in the thread that opened it."""


def alpha_rows(alpha: Alpha) -> Tensor:
    """Bring alpha into the shape `(requests,)`; a single number serves every row.

    Raises:
        InvalidInputError: Not numbers, not finite, or no list of them.
    """
    try:
        rows = torch.as_tensor(alpha, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"alpha must be a number or one number per row of the batch; got {alpha!r}.") from error
    if rows.dim() == 0:
        rows = rows[None]
    if rows.dim() != 1 or rows.numel() == 0:
        raise InvalidInputError(f"alpha must be a number or have shape (batch,); got shape {tuple(rows.shape)}.")
    if not torch.isfinite(rows).all():
        raise InvalidInputError(f"alpha must be finite; got {rows.tolist()}.")
    return rows


def moved_rows(profile: FocusProfile, passages_at: PassagesAt | None) -> Tensor | None:
    """By how many positions each request's passages stand further on than in the fit, `(requests,)`.

    Returns:
        None where nothing is to be turned: they stand where they did, it is not known where they stood, or the site
            does not depend on it.

    Raises:
        InvalidInputError: Not a position, nor a list of them.
    """
    if passages_at is None or profile.passages_at is None or profile.site != "post_rope":
        return None
    try:
        rows = torch.as_tensor(passages_at).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"passages_at must be a position or one per row; got {passages_at!r}.") from error
    rows = rows[None] if rows.dim() == 0 else rows
    if (
        rows.dim() != 1
        or rows.numel() == 0
        or rows.is_floating_point()
        or rows.dtype == torch.bool
        or bool((rows < 0).any())
    ):
        raise InvalidInputError(f"passages_at must hold whole numbers from 0, one or one per row; got {rows.tolist()}.")
    moved = rows - profile.passages_at
    return moved if moved.any() else None


def layer_directions(profile: FocusProfile, directions: Tensor) -> dict[int, Tensor]:
    """Directions of the profile's heads by layer: `(query_heads, head_dim)` each, zero on heads not steered."""
    shape = (profile.fingerprint.query_heads, profile.fingerprint.head_dim)
    by_layer: dict[int, Tensor] = {}
    for entry, direction in zip(profile.heads, directions, strict=True):
        by_layer.setdefault(entry.layer, torch.zeros(shape))[entry.head] = direction
    return by_layer


class FocusHandle:
    """An intervention attached to a model; `remove()` leaves the model as it was.

    Attributes:
        model: The model.
        profile: The profile in force.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: FocusProfile,
        alpha: Alpha,
        *,
        passages_at: PassagesAt | None = None,
        across_threads: bool = False,
    ) -> None:
        self.model = model
        self.profile = profile
        self._alpha = alpha_rows(alpha)
        self._moved = moved_rows(profile, passages_at)
        self._directions = layer_directions(profile, profile.directions)
        self._trained: Tensor | None = None
        self._undo = ExitStack()
        self._across_threads = across_threads
        self._layers: dict[nn.Module, int] = {}
        self._is_attached = False
        # Computed once, for all layers together, and only added from then on: by (rows, device, dtype), and by layer as
        # laid out.
        self._together: dict[tuple[Any, ...], dict[int, Tensor]] = {}
        self._shifts: dict[tuple[Any, ...], Tensor] = {}
        self._has_run = False

    @property
    def alpha(self) -> Tensor:
        """`(requests,)` intervention factors."""
        return self._alpha

    def set_alpha(self, alpha: Alpha) -> None:
        """Change alpha while attached."""
        self._alpha = alpha_rows(alpha)
        self._forget()

    def set_directions(self, directions: Tensor) -> None:
        """Change the directions while attached, `(heads, head_dim)` in the order of the profile's heads; gradients flow
        to them.
        """
        self._directions = layer_directions(self.profile, directions.detach())
        self._trained = directions if directions.requires_grad else None
        self._forget()

    def set_passages_at(self, passages_at: PassagesAt | None) -> None:
        """Change where the passages stand while attached, see `focus`.

        Raises:
            InvalidInputError: Not a position, nor a list of them.
            UnsupportedModelError: The model's RoPE cannot be reproduced.
        """
        self._moved = moved_rows(self.profile, passages_at)
        self._check_turning()
        self._forget()

    def attach(self) -> FocusHandle:
        """Attach; if anything fails, everything attached so far is removed first.

        Raises:
            ProfileMismatchError: The profile belongs to another model.
            UnsupportedModelError: Queries cannot be reached at the profile's site.
            AttachError: It is attached already.
        """
        if self._is_attached:
            raise AttachError("This handle is attached already; remove it first, or make another one.")
        self.profile.check(self.model)
        layout = ModelLayout.of(self.model)
        layout.require_site(self.profile.site)
        if self.profile.site != "post_rope":
            _refuse_blind_graphs(self.model, self.profile.site)
            check_query_site(self.model, layout, self.profile.site)
        self._check_turning()
        with ExitStack() as undo:
            chosen = [layer for layer in layout.layers if layer.index in self._directions]
            self._layers = {layer.attention: layer.index for layer in chosen}
            tap = _SteeringTap(self, across_threads=self._across_threads)
            undo.enter_context(tap)
            if self.profile.site != "post_rope":
                for layer in chosen:
                    undo.callback(_hook_queries(layer, self, tap).remove)
            self._undo = undo.pop_all()
        self._is_attached = True
        return self

    def remove(self) -> None:
        """Detach; removing twice does no harm."""
        self._undo.close()
        self._is_attached = False

    def shift(self, layer: int, rows: int, like: Tensor, query_format: QueryFormat, width: int) -> Tensor:
        """`alpha * d_q` of a layer, laid out for a module's output with so many rows, on its device and in its dtype.

        Raises:
            AttachError: The rows of the forward pass cannot be assigned to the requests alpha was given for.
        """
        if self._trained is not None:  # each pass has a graph of its own
            directions = layer_directions(self.profile, self._trained)
            return laid_out(self._shifts_of({layer: directions[layer]}, rows, like)[layer], query_format, width)
        key = (layer, rows, like.device, like.dtype)
        found = self._shifts.get(key)
        if found is None:
            if key[1:] not in self._together:
                self._together[key[1:]] = self._shifts_of(self._directions, rows, like)
            found = self._shifts[key] = laid_out(self._together[key[1:]][layer], query_format, width)
        return found

    def _shifts_of(self, directions: Mapping[int, Tensor], rows: int, like: Tensor) -> dict[int, Tensor]:
        """`alpha * d_q` by layer, `(rows or 1, query_heads, head_dim)`, in one transfer to the device."""
        layers = list(directions)
        stacked = torch.stack([directions[layer] for layer in layers])
        shifts = self._spread("alpha", self._alpha, rows)[:, None, None] * stacked[:, None]
        if self._moved is not None:
            moved = self._spread("passages_at", self._moved, rows)
            shifts = shifts.expand(-1, max(shifts.shape[1], len(moved)), -1, -1)
            shifts = Turning.of(self.model).all_turned(layers, shifts, moved[:, None])
        return dict(zip(layers, _sent(shifts, like), strict=True))

    def _forget(self) -> None:
        self._together.clear()
        self._shifts.clear()

    def _check_turning(self) -> None:
        """Refuse a model whose RoPE is not known here, not in the midst of a forward pass."""
        if self._moved is not None:
            Turning.of(self.model)

    def _spread(self, name: str, per_request: Tensor, rows: int) -> Tensor:
        spread = rows_of(per_request, rows)
        if spread is None:
            raise AttachError(
                f"A forward pass of {rows} rows met {name} for {len(per_request)} requests. Give one {name} for all "
                "rows, or one per row; packed batches (continuous batching) take a single one."
            )
        return spread


def _sent(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor on another one's device and in its dtype, without waiting for what a GPU is still doing."""
    tensor = tensor.to(like.dtype)
    if like.device.type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:
        return tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.device)


class _SteeringTap(AttentionTap):
    """Shifts queries after RoPE; for the other sites it only marks which thread is focused."""

    def __init__(self, handle: FocusHandle, *, across_threads: bool) -> None:
        after_rope = handle.profile.site == "post_rope"
        super().__init__(handle._layers if after_rope else {}, across_threads=across_threads)
        self._handle = handle

    def shift(self, layer: int, query: Tensor) -> Tensor:
        self._handle._has_run = True
        return query + self._handle.shift(layer, query.shape[0], query, "heads_tokens", query.shape[-1])


def _hook_queries(layer: LayerLayout, handle: FocusHandle, tap: AttentionTap) -> torch.utils.hooks.RemovableHandle:
    site = layer.query_module(handle.profile.site)
    if site is None:
        raise UnsupportedModelError(
            f"Layer {layer.index} has no module that holds queries at site {handle.profile.site!r}."
        )
    index, query_format = layer.index, site.format

    def add_shift(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if not tap.is_open_here:
            return output
        handle._has_run = True
        return output + handle.shift(index, output.shape[0], output, query_format, output.shape[-1])

    with HOOKS_LOCK:
        return site.module.register_forward_hook(add_shift)


@contextmanager
def focus(
    model: nn.Module,
    profile: FocusProfile,
    alpha: Alpha,
    *,
    passages_at: PassagesAt | None = None,
    top_k: int | None = None,
    across_threads: bool = False,
) -> Iterator[FocusHandle | None]:
    """Focus a model while the context is open.

    Args:
        model: Any supported Hugging Face causal LM, PEFT-wrapped or quantised included. Compiled models work at site
            `post_rope`, with a graph break in each focused layer (so not with `fullgraph=True`).
        profile: Contextual heads and focus directions.
        alpha: Intervention factor: a number, or one per request of a left-padded batch, shape `(batch,)`. Rows that
            beam search or several return sequences add keep their request's alpha. At 0 nothing is attached at all, so
            the result is bit-identical to the bare model; negative values distract.
        passages_at: Position of the first token of the first passage, padding not counted; a number, or one per
            request. Given it, directions at site `post_rope` are turned from where the passages stood in the fit
            (`profile.passages_at`) to where they stand. By default, and for profiles that do not say, directions are
            applied as they are, which is what the published code does.
        top_k: Steer only the k best heads.
        across_threads: By default only forward passes of the entering thread are focused, so that concurrent calls
            never mix. Pass True where the model runs in other threads (`generate_batch`, pipelines that stream).

    Yields:
        The handle, or None when alpha is 0 everywhere.

    Raises:
        InvalidInputError: alpha or passages_at is not usable.
        AttachError: In a forward pass: it has other rows than alpha or passages_at were given for.
        ProfileMismatchError: The profile belongs to another model.
        UnsupportedModelError: The model cannot be steered at the profile's site.
    """
    if not alpha_rows(alpha).any():
        yield None
        return
    handle = FocusHandle(
        model,
        profile if top_k is None else profile.top(top_k),
        alpha,
        passages_at=passages_at,
        across_threads=across_threads,
    )
    handle.attach()
    try:
        yield handle
        if not handle._has_run:
            warnings.warn(
                "The model did not run in this thread while it was focused. If it runs in another thread, pass "
                "across_threads=True.",
                FocusNotAppliedWarning,
                stacklevel=3,
            )
    finally:
        handle.remove()


def _refuse_blind_graphs(model: nn.Module, site: Site) -> None:
    """Refuse sites before RoPE on a compiled model whose graphs do not notice hooks that come or go.

    Raises:
        UnsupportedModelError: Saying how to make them notice.
    """
    if any(map(_is_compiled, model.modules())) and torch._dynamo.config.skip_nnmodule_hook_guards:  # type: ignore[attr-defined]
        raise UnsupportedModelError(
            f"The model, or part of it, is compiled, and compiled graphs skip the hooks that site {site!r} needs. Set "
            "torch._dynamo.config.skip_nnmodule_hook_guards = False before it first runs, use a profile at site "
            "'post_rope', or focus the model that is not compiled."
        )


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled: as a whole, in place, or by what stands in the place of its `forward`."""
    own = vars(module)
    return (
        "_orig_mod" in own.get("_modules", ())
        or any(own.get(name) is not None for name in ("_compiled_call_impl", "_compiled_call"))
        or _is_compiled_function(own.get("forward"))
    )


def _is_compiled_function(function: object) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(function, "_torchdynamo_disable", False)
