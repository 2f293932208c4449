"""Whether a model's queries really are where its layout says, checked on the model itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall
from focus_rag.attention.tap import HOOKS_LOCK, AttentionTap, undisturbed
from focus_rag.errors import UnsupportedModelError
from focus_rag.model_layout import ModelLayout, QueryModule, Site
from focus_rag.probing import run_one_token
from focus_rag.query_layouts import as_heads

_CHECK_LOCK: Final = threading.Lock()
_CHECKED: Final[weakref.WeakKeyDictionary[nn.Module, set[Site]]] = weakref.WeakKeyDictionary()
_TOLERANCE: Final = 0.03  # of the query's own size: wrong layouts are off by its whole size, bfloat16 by less than 0.01


def check_query_site(model: nn.Module, layout: ModelLayout, site: Site) -> None:
    """Check on the model itself that the layout reads queries right; once per model and site.

    RoPE is the identity at position 0 (up to one factor), so the queries read from the site's module in a forward pass
    of one token must be those that arrive at the attention function. For site `projection` in models with a query norm
    they must be those that enter the norm.

    Raises:
        UnsupportedModelError: They are not; naming the first layer where they differ.
    """
    with _CHECK_LOCK:
        if site not in _CHECKED.setdefault(model, set()):
            _compare_queries(layout, site, _queries_at_position_zero(model, layout))
            _CHECKED[model].add(site)


def _queries_at_position_zero(model: nn.Module, layout: ModelLayout) -> dict[tuple[int, str], Tensor]:
    """Run one token and read every layer's queries at its sites, before its norm and at the attention function."""
    reads: dict[tuple[int, str], Tensor] = {}
    modules = {layer.attention: layer.index for layer in layout.layers}
    with ExitStack() as undo:
        undo.enter_context(undisturbed())
        reader = undo.enter_context(_QueryReader(modules, reads))
        for layer in layout.layers:
            for name in ("projection", "normed"):
                query_module = layer.query_module(name)  # type: ignore[arg-type]
                if query_module is not None:
                    undo.enter_context(_reading(query_module, layer.index, name, layout, reader))
        run_one_token(model)
    return reads


def _compare_queries(layout: ModelLayout, site: Site, reads: dict[tuple[int, str], Tensor]) -> None:
    for layer in layout.layers:
        through_norm = site == "projection" and layer.projection is not layer.normed
        ours = reads.get((layer.index, site))
        theirs = reads.get((layer.index, "norm_input" if through_norm else "attention"))
        if ours is None or theirs is None or not _same_up_to_factor(ours, theirs):
            raise UnsupportedModelError(
                f"The queries of layer {layer.index} of {layout.family!r} are not where its layout says (site "
                f"{site!r}). Use site 'post_rope', which works over every attention implementation."
            )


class _QueryReader(AttentionTap):
    """Notes the queries that arrive at the attention function."""

    def __init__(self, layers: dict[nn.Module, int], reads: dict[tuple[int, str], Tensor]) -> None:
        super().__init__(layers)
        self.reads = reads

    def observe(self, layer: int, call: AttentionCall) -> None:
        self.reads[layer, "attention"] = call.query.detach().float()


@contextmanager
def _reading(site: QueryModule, index: int, name: str, layout: ModelLayout, reader: _QueryReader) -> Iterator[None]:
    reads = reader.reads

    def read(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not reader.is_open_here:  # another thread runs the model
            return
        seen = [(name, output)]
        given = inputs[0] if inputs else None
        if name == "normed" and isinstance(given, Tensor) and given.shape == getattr(output, "shape", None):
            seen.append(("norm_input", given))
        # Of an output that a wrong layout names, nothing is read.
        with suppress(UnsupportedModelError):
            for what, tensor in seen:
                heads = as_heads(tensor, site.format, layout.query_heads, layout.head_dim)
                reads[index, what] = heads.detach().float()

    with HOOKS_LOCK:
        handle = site.module.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()


def _same_up_to_factor(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    factor = float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-30))
    return bool((theirs - factor * ours).norm() <= _TOLERANCE * theirs.norm()) and factor > 0
