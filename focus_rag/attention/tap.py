"""A tap on the attention function a model already uses: see its queries and keys, change queries or the output.

The function is wrapped under its existing name while at least one tap is open, and put back with the last one:
a new name would lose the attention masks that transformers builds by name. Modules without a tap pass straight
through, so other models in the process are untouched.

A tap belongs to the thread (more exactly, the context) that opened it. Two threads that run one model with
different interventions therefore never meet. A tap opened with `across_threads=True` serves every thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall, with_bias
from focus_rag.errors import AttachError
from focus_rag.model_layout import attention_home

_LOCK = threading.RLock()
HOOKS_LOCK = threading.Lock()
"""Held while hooks are registered: torch numbers them without one, and two of the same number replace each other."""
_OPEN_HERE: ContextVar[tuple[AttentionTap, ...]] = ContextVar("focus_rag_open_taps", default=())
_ALONE: ContextVar[bool] = ContextVar("focus_rag_alone", default=False)
# A function that somebody else put around ours, and that is wrapped in its turn, comes to ours again.
_SERVED: ContextVar[nn.Module | None] = ContextVar("focus_rag_served", default=None)
_open_everywhere: tuple[AttentionTap, ...] = ()
_tapped_modules: Counter[nn.Module] = Counter()
_wrapped: dict[int, _WrappedInterface] = {}


class AttentionTap:
    """What happens around the attention of chosen layers; subclasses say what.

    Args:
        layers: Attention modules mapped to their layer index.
        across_threads: Serve every thread that runs the model, not only the one that opened the tap.
    """

    def __init__(self, layers: Mapping[nn.Module, int], *, across_threads: bool = False) -> None:
        self.layers = dict(layers)
        self.across_threads = across_threads
        self._interfaces: list[Any] = []
        self._is_open = False
        kind = type(self)
        self._watches = kind.observe is not AttentionTap.observe or kind.change is not AttentionTap.change

    def shift(self, layer: int, query: Tensor) -> Tensor:
        """Return the query `(batch, query_heads, tokens, head_dim)`, after RoPE, that attention is to use."""
        return query

    def observe(self, layer: int, call: AttentionCall) -> None:
        """See the call that attention is about to serve."""

    def change(self, layer: int, call: AttentionCall, output: Tensor) -> Tensor:
        """Return the output `(batch, tokens, query_heads, value_dim)` that the layer is to go on with."""
        return output

    @property
    def is_open_here(self) -> bool:
        """Whether a forward pass of this thread is served by this tap."""
        return self in _taps_here()

    def open(self) -> None:
        """Start serving. Nothing stays behind if it fails."""
        global _open_everywhere
        with _LOCK:
            if self._is_open:
                raise AttachError("This tap is open already; close it before it is opened again.")
            try:
                for interface in _interfaces_of(self.layers):
                    _wrap(interface)
                    self._interfaces.append(interface)
            except BaseException:
                self._release_interfaces()
                raise
            self._is_open = True
            _tapped_modules.update(self.layers.keys())
            if self.across_threads:
                _open_everywhere = (*_open_everywhere, self)
        if not self.across_threads:
            # Taps that were closed from another context are let go of here.
            _OPEN_HERE.set((*(tap for tap in _OPEN_HERE.get() if tap._is_open), self))

    def close(self) -> None:
        """Stop serving; closing twice does no harm."""
        global _open_everywhere
        _OPEN_HERE.set(tuple(tap for tap in _OPEN_HERE.get() if tap is not self))
        with _LOCK:
            if not self._is_open:
                return
            # Closed from another context (a finaliser, another task), the tap stays in the list of the one that opened
            # it; there this flag turns it off.
            self._is_open = False
            _open_everywhere = tuple(tap for tap in _open_everywhere if tap is not self)
            for module in self.layers:
                _tapped_modules[module] -= 1
                if not _tapped_modules[module]:
                    del _tapped_modules[module]
            self._release_interfaces()

    def _release_interfaces(self) -> None:
        while self._interfaces:
            _unwrap(self._interfaces.pop())

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _taps_here() -> list[AttentionTap]:
    """Open taps that serve a forward pass of this context, in the order they were opened."""
    everywhere = () if _ALONE.get() else _open_everywhere
    return [tap for tap in (*everywhere, *_OPEN_HERE.get()) if tap._is_open]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a model in this context as if no tap were open; taps opened inside do serve."""
    here, alone = _OPEN_HERE.set(()), _ALONE.set(True)
    try:
        yield
    finally:
        _OPEN_HERE.reset(here)
        _ALONE.reset(alone)


def _interfaces_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The attention interfaces the modules' own files use; nearly always the one all models share."""
    homes = {attention_home(type(module)) for module in modules}
    found = [home.ALL_ATTENTION_FUNCTIONS for home in homes if home is not None]
    return list({id(interface): interface for interface in found}.values())


class _WrappedInterface:
    """One attention interface with all its functions wrapped, and how many taps need it."""

    def __init__(self, interface: Any) -> None:
        self.interface = interface
        self.users = 0
        self._own = dict(interface._local_mapping)
        self._ours: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Wrap what is not wrapped: everything at first, then what was registered in the meantime."""
        local = self.interface._local_mapping
        try:
            for name in dict.fromkeys([*self.interface, "eager"]):
                if name in self._ours and local.get(name) is self._ours[name]:
                    continue
                if name in local:
                    self._own[name] = local[name]
                self._ours[name] = _tapped(name, self._own.get(name, self.interface._global_mapping.get(name)))
                self.interface[name] = self._ours[name]
        except BaseException:
            if not self.users:
                self.remove()
            raise

    def remove(self) -> None:
        """Put back what stood there; a function that somebody registered in the meantime stays."""
        local = self.interface._local_mapping
        for name, ours in self._ours.items():
            if local.get(name) is not ours:
                continue
            if name in self._own:
                local[name] = self._own[name]
            else:
                del local[name]


def _wrap(interface: Any) -> None:
    wrapped = _wrapped.get(id(interface))
    if wrapped is None:
        wrapped = _WrappedInterface(interface)
    wrapped.install()
    _wrapped[id(interface)] = wrapped
    wrapped.users += 1


def _unwrap(interface: Any) -> None:
    wrapped = _wrapped[id(interface)]
    wrapped.users -= 1
    if wrapped.users == 0:
        wrapped.remove()
        del _wrapped[id(interface)]


def _tapped(name: str, original: Callable[..., Any] | None) -> Callable[..., Any]:
    """Wrap an attention function; None stands for the eager function of the calling module's own file."""
    starts_first = "flash" not in name

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        function = original or attention_home(type(module)).eager_attention_forward
        # Asked first: another model, compiled whole, must not meet the context variable, which breaks its graph.
        if module not in _tapped_modules or _SERVED.get() is module:
            return function(module, query, key, value, attention_mask, **kwargs)
        taps = [tap for tap in _taps_here() if module in tap.layers]
        if not taps:
            return function(module, query, key, value, attention_mask, **kwargs)
        for tap in taps:
            query = tap.shift(tap.layers[module], query)
        served = _SERVED.set(module)
        try:
            output, weights = function(module, query, key, value, attention_mask, **kwargs)
        finally:
            _SERVED.reset(served)
        watching = [tap for tap in taps if tap._watches]
        if not watching:
            return output, weights
        call = _call_of(module, query, key, value, attention_mask, kwargs, starts_first)
        for tap in watching:
            tap.observe(tap.layers[module], call)
            output = tap.change(tap.layers[module], call, output)
        return output, weights

    return attention


def _call_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
    starts_first: bool,
) -> AttentionCall:
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = getattr(module, "scaling", None) or query.shape[-1] ** -0.5
    sinks = kwargs.get("s_aux", getattr(module, "sinks", None))
    call = AttentionCall(
        query,
        key,
        value,
        mask,
        float(scaling),
        kwargs.get("softcap"),
        kwargs.get("sliding_window"),
        sinks,
        starts_first,
    )
    bias = kwargs.get("position_bias")
    return call if bias is None else with_bias(call, bias)
