"""A cache for generation that keeps A x in place of keys, or values, where these are B (A x) of a smaller rank.

    model.generate(tokens, past_key_values=LatentCache(model))

At every step keys and values of all tokens are rebuilt, keys before they are rotated; then the attention's own code
does with them what it did when the tokens came: norms, heads, rotation.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# The projections whose outputs are cached, and what becomes of them there.
SIDES = {"k_proj": "keys", "v_proj": "values"}
# Rotations that look at the length of the text so far, and so turn a key otherwise when it is rebuilt.
CHANGING = ("dynamic", "longrope")


class LatentCache(DynamicCache):
    """Where a projection is kept as a pair whose rank is below its width, what its first factor gives, (B, 1, S, r).

    All else is kept as DynamicCache keeps it. It serves one model, and is grown, cut, reordered and copied as others.

    Raises:
        ValueError: it would not save bytes, or keys could not be rotated as they were.
    """

    def __init__(self, model: nn.Module):
        config: Any = model.config
        super().__init__(config=config)
        rotations = Rotations(model)
        kept = plain = 0
        found = attentions(model)
        for index, attention in found.items():
            widths = latent_widths(attention)
            whole = type(self.layers[index]) is DynamicLayer  # those of a sliding window hold few tokens, and stay
            latent = {side: rank for side, (rank, width) in widths.items() if whole and rank and rank < width}
            plain += sum(width for _, width in widths.values())
            kept += sum(latent.get(side, width) for side, (_, width) in widths.items())
            if latent:
                self.layers[index] = LatentLayer(Site(attention, set(latent), rotations))
        if not found:
            raise ValueError(f"a latent cache needs attentions with a k_proj and a v_proj; {_name(model)} has none")
        if kept >= plain:
            raise ValueError(
                f"a latent cache saves nothing here: in no attention of {_name(model)} that keeps all tokens is k_proj "
                "or v_proj a pair of a rank below its width"
            )


def attentions(model: nn.Module) -> dict[int, nn.Module]:
    """The attentions that cache what their k_proj and v_proj give, by their place in the cache."""
    found = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and SIDES.keys() <= module._modules.keys() and _takes_cache(module):
            found[index] = module
    return found


def _takes_cache(module: nn.Module) -> bool:
    return "past_key_values" in inspect.signature(module.forward).parameters


def latent_widths(attention: nn.Module) -> dict[str, tuple[int | None, int]]:
    """Of each projection by what is cached of it: its rank, None where it is no pair, and its width."""
    widths = {}
    for name, side in SIDES.items():
        layer: Any = attention._modules[name]
        pair = getattr(layer, "pair_shape", None)
        widths[side] = pair or (None, layer.out_features if hasattr(layer, "out_features") else len(layer.weight))
    return widths


class LatentLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """The cache of one attention: `keys` and `values`, each latent, (B, 1, S, r), or plain, (B, heads, S, width).

    `positions`, (B, S) int32, are where keys are rotated to, if they are.
    """

    def __init__(self, site: "Site"):
        super().__init__()  # type: ignore[no-untyped-call]
        self.site = site
        self.positions: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the states of new tokens and give those of all tokens, as the attention wants them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = self.get_seq_length() == 0
        given = {"keys": key_states, "values": value_states}
        latent, positions = self.site.take()
        for side, states in given.items():
            new = latent[side][:, None] if side in latent else states
            setattr(self, side, torch.cat([getattr(self, side), new], dim=-2))
        if positions is not None:
            self.positions = positions if first else torch.cat([self.positions, positions], dim=-1)  # type: ignore[list-item]
        if not first:
            rebuilt = self.site.rebuild({side: getattr(self, side)[:, 0] for side in latent}, self.positions)
            given = {side: rebuilt[side] if side in latent else getattr(self, side) for side in given}
        self.site.forget()
        return given["keys"], given["values"]

    def _rearrange(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.positions is not None:
            self.positions = change(self.positions)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.positions = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, -`tokens_to_remove` of them."""
        super().crop(tokens_to_remove)
        if tokens_to_remove:
            self._rearrange(lambda positions: positions[:, : -abs(tokens_to_remove)])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let row i be what row `beam_idx[i]` was."""
        super().reorder_cache(beam_idx)
        self._rearrange(lambda positions: positions.index_select(0, beam_idx.to(positions.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let each row stand `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._rearrange(lambda positions: positions.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._rearrange(lambda positions: positions[indices])


class Site:
    """One attention, listened to: what its projections get of the pass that runs, and its way from them to states."""

    def __init__(self, attention: nn.Module, latent: set[str], rotations: "Rotations"):
        self.attention, self.latent, self.rotations = attention, latent, rotations
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.seen: dict[str, torch.Tensor] = {}
        self.query_width = 0
        self.rotates = "position_ids" in inspect.signature(attention.forward).parameters
        _listen(self, attention, Site._begin, before=True)
        for name, side in SIDES.items():
            if side in latent:
                _listen(self, attention._modules[name], Site._project, before=True)
        if (query := attention._modules.get("q_proj")) is not None:
            _listen(self, query, Site._query)

    def __deepcopy__(self, memo: Any) -> "Site":
        """Itself: a copy of a cache is of the same model."""
        return self

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layers = getattr(kwargs.get("past_key_values"), "layers", ())
        ours = any(getattr(layer, "site", None) is self for layer in layers)
        self.call, self.seen = (args, kwargs) if ours else None, {}

    def _project(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.call is not None:
            side = next(side for name, side in SIDES.items() if self.attention._modules[name] is layer)
            self.seen[side] = layer.latent(*args, **kwargs)

    def _query(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        self.query_width = output.shape[-1]

    def take(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What is kept of the tokens that the attention has just projected: (B, T, r) each; positions (B, T) int32."""
        assert self.call is not None
        latent = {side: part for side, part in self.seen.items() if side in self.latent}
        positions = self.rotations.positions(self.call[1], rotates=self.rotates)
        if positions is not None:
            rows = next(iter(latent.values())).shape[0]
            positions = positions.to(torch.int32).expand(rows, -1)
        return latent, positions

    def forget(self) -> None:
        """Let go of the pass: its arguments hold the cache, which holds this."""
        self.call, self.seen = None, {}

    def rebuild(self, latent: Mapping[str, torch.Tensor], positions: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """States of all tokens, (B, heads, S, width) by side, from what was kept of them, (B, S, r)."""
        assert self.call is not None
        given = {name: latent[side] for name, side in SIDES.items() if side in latent}
        states = {name: self.attention._modules[name].rebuilt(part) for name, part in given.items()}  # type: ignore[union-attr, operator]
        some = next(iter(states.values()))
        args, kwargs = self.call
        # of the tokens' states before the projections nothing is read but the shape
        nothing = some.new_zeros(()).expand(*some.shape[:2], _hidden(args, kwargs).shape[-1])
        kwargs = {key: value for key, value in kwargs.items() if key != "hidden_states"} | {"attention_mask": None}
        if positions is not None:
            kwargs |= self.rotations.turned(kwargs, positions)
        if self.query_width:
            states["q_proj"] = some.new_zeros(()).expand(*some.shape[:2], self.query_width)
        kwargs["past_key_values"] = _Catch()
        with _in_place_of(self.attention, {name: _Given(part) for name, part in states.items()}):
            try:
                self.attention.forward(nothing, *args[1:], **kwargs)
            except _CaughtError as caught:
                return caught.states
        raise AssertionError("an attention that updated its cache once does so again")


class Rotations:
    """The modules that say how a position is rotated, listened to: attentions get what they give."""

    def __init__(self, model: nn.Module):
        self.calls: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = {}
        self.last: tuple[int, torch.Tensor, Any] | None = None  # of a call, for positions: what it gave
        for module in model.modules():
            if not any("inv_freq" in name for name in module._buffers):
                continue
            kinds = getattr(module, "rope_type", "")
            for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
                if kind in CHANGING:
                    raise ValueError(f"a latent cache cannot rebuild keys that are rotated by the length, {kind} RoPE")
            _listen(self, module, Rotations._heard)

    def _heard(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple):
            settings = [value for value in (*args, *kwargs.values()) if not isinstance(value, torch.Tensor)]
            self.calls[hash((id(module), *map(str, settings)))] = (module, args, kwargs, output)

    def _call(self, embeddings: Any) -> int:
        """Which call gave an attention its `position_embeddings`."""
        for key, call in self.calls.items():
            if call[-1][0] is embeddings[0]:
                return key
        raise ValueError("a latent cache cannot rebuild keys: no module was seen that made their position embeddings")

    def positions(self, kwargs: Mapping[str, Any], *, rotates: bool) -> torch.Tensor | None:
        """Where the tokens of an attention's call stand, (1 or B, T); None if its keys do not depend on that.

        It either gets position embeddings, or `rotates` by position ids itself.
        """
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            return kwargs.get("position_ids") if rotates else None
        _, args, given, _ = self.calls[self._call(embeddings)]
        found: torch.Tensor = next(value for value in (*args, *given.values()) if _is_positions(value))
        if found.ndim != 2:
            raise ValueError("a latent cache knows no positions in several dimensions")
        return found

    def turned(self, kwargs: Mapping[str, Any], positions: torch.Tensor) -> dict[str, Any]:
        """What an attention's call has of positions, for `positions` (B, S)."""
        changed = {"position_ids": positions.long()} if kwargs.get("position_ids") is not None else {}
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            return changed
        key = self._call(embeddings)
        if self.last is None or self.last[0] != key or not torch.equal(self.last[1], positions):
            module, args, given, _ = self.calls[key]
            args = tuple(positions.long() if _is_positions(value) else value for value in args)
            given = {name: positions.long() if _is_positions(value) else value for name, value in given.items()}
            # not the module itself, which is listened to
            self.last = (key, positions, module.forward(*args, **given))
        return changed | {"position_embeddings": self.last[2]}


def _is_positions(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


class _CaughtError(Exception):
    """What an attention wanted to cache."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.states = {"keys": keys, "values": values}


class _Catch(DynamicCache):
    """Ends an attention's pass where it caches."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raise what it is given."""
        raise _CaughtError(key_states, value_states)


class _Given(nn.Module):
    """A projection whose output is known."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """That output."""
        return self.output


@contextmanager
def _in_place_of(module: nn.Module, children: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within this context `children` are those of `module`."""
    before = {name: module._modules[name] for name in children}
    module._modules.update(children)
    try:
        yield
    finally:
        module._modules.update(before)


def _listen(listener: Any, module: Any, hear: Callable[..., None], *, before: bool = False) -> None:
    """Let `listener` hear of calls of `module` as long as somebody else holds it."""
    reference = weakref.ref(listener)

    def heard(*call: Any) -> None:
        if (present := reference()) is not None:
            hear(present, *call)

    register = module.register_forward_pre_hook if before else module.register_forward_hook
    weakref.finalize(listener, register(heard, with_kwargs=True).remove)


def _name(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("LowRank")
