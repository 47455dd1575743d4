"""YAML from outside, read in bounded time and memory.

In: `read_yaml`. Left out: what the values mean (project.py). Beyond `yaml.safe_load`, which runs
no code: anchors that stand for a billion nodes, merge keys that double at every level, numbers of a
million digits and nesting without end are refused.
"""

from __future__ import annotations

from typing import Any

import yaml

LARGEST_TEXT = 2**23
LARGEST_TREE = 1_000_000
DEEPEST = 32
LONGEST_NUMBER = 64


class _Loader(yaml.SafeLoader):
    """The safe loader, with limits where it has none."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys `<<`; each level may repeat the one below, so they multiply."""
        super().flatten_mapping(node)
        if len(node.value) > LARGEST_TREE:
            raise yaml.constructor.ConstructorError(
                None, None, "merge keys make a mapping too large", node.start_mark
            )

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number, unless it has more digits than any setting."""
        if len(str(node.value)) > LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number has more than {LONGEST_NUMBER} digits", node.start_mark
            )
        if node.tag == "tag:yaml.org,2002:int":
            return int(self.construct_yaml_int(node))
        return float(self.construct_yaml_float(node))


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ValueError: If it is not YAML, or beyond a limit; one line says which.
    """
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"must have at most {LARGEST_TEXT} characters, got {len(text)}")
    try:
        tree = yaml.load(text, _Loader)
        _check_size(tree)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"is not YAML: {error}") from None
    return tree


def _check_size(tree: Any) -> None:
    """Refuse a tree that is too deep or too large, an anchor counted wherever it is used."""
    nodes = 0
    stack = [iter([tree])]
    while stack:
        node = next(stack[-1], stack)
        if node is stack:
            stack.pop()
            continue
        nodes += 1
        if nodes > LARGEST_TREE:
            raise ValueError(f"stands for more than {LARGEST_TREE} values")
        if isinstance(node, dict):
            stack.append(iter([*node.keys(), *node.values()]))
        elif isinstance(node, list | tuple | set):
            stack.append(iter(list(node)))
        if len(stack) > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST - 1} deep")
