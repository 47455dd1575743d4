"""Taps: what named modules of a network returned in its last forward pass.

In: `BlockTaps`, forward hooks that are taken away again. Left out: what becomes of the outputs
(pipeline.teachers.features).

A network does not know that it is tapped: nothing is registered in it but the hooks, its
state_dict stays as it is, and a copy of it (an average of weights, say) records nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from storage_schemas.errors import ConfigError

Keep = Callable[[str, Tensor], Tensor]

_SHOWN = 40  # names in an error


def _whole(name: str, output: Tensor) -> Tensor:
    # A copy: an activation that works in place may follow, and change what was returned.
    return torch.clone(output)


def unknown_blocks(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return one sentence per name that no module of a network has, with the names there are."""
    modules = [name for name, _ in network.named_modules() if name]
    problems = []
    for name in names:
        if name in modules:
            continue
        inside = [one for one in modules if one.startswith(f"{name.rpartition('.')[0]}.")]
        near = inside or [one for one in modules if one.count(".") < 2]
        more = f" and {len(near) - _SHOWN} more" if len(near) > _SHOWN else ""
        problems.append(f"must be a module of the network: {near[:_SHOWN]}{more}, got {name!r}")
    return problems


class BlockTaps:
    """Records the outputs of modules; a context manager, at whose end no hook is left.

    A module that runs several times in one pass is recorded as it was last.

    Args:
        network: Under training, evaluation or inference mode.
        names: Of its modules, as `named_modules` calls them.
        keep: (name, output) -> what is kept of an output; called in the pass itself, before
            anything can change it. A copy by default, through which gradients flow.

    Raises:
        ConfigError: If there is no such module; lists those there are.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], keep: Keep = _whole) -> None:
        problems = unknown_blocks(network, names)
        if problems:
            raise ConfigError("block", problems)
        self._names = tuple(names)
        self._keep = keep
        self._outputs: dict[str, Tensor] = {}
        self._handles = [
            network.get_submodule(name).register_forward_hook(_Hook(self, name))
            for name in dict.fromkeys(names)
        ]

    def record(self, name: str, output: object) -> None:
        """Keep an output; called by the hook.

        Raises:
            ConfigError: If the module does not return one tensor.
        """
        if not isinstance(output, Tensor):
            raise ConfigError(
                "block",
                [f"{name!r} must return a tensor, got {type(output).__name__}; tap one inside it"],
            )
        self._outputs[name] = self._keep(name, output)

    def take(self) -> dict[str, Tensor]:
        """Return what the last pass left, by name, and forget it: its graph must not outlive it.

        Raises:
            ConfigError: If a module did not run in it.
        """
        idle = [name for name in self._names if name not in self._outputs]
        if idle:
            raise ConfigError("block", [f"{name!r} does not run in this network" for name in idle])
        found, self._outputs = self._outputs, {}
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockTaps:
        """Return taps of nothing: the hooks of a copied network do not record."""
        return BlockTaps(nn.Module(), ())

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._outputs = [], {}

    def __enter__(self) -> BlockTaps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Hook:
    def __init__(self, taps: BlockTaps | None, name: str) -> None:
        self.taps, self.name = taps, name

    def __call__(self, module: nn.Module, inputs: Any, output: object) -> None:
        if self.taps is not None:
            self.taps.record(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None, self.name)
