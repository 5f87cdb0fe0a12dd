"""YAML as people write it: nothing is taken silently for something else."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import yaml

from stmsi._data.containers import check_file

if TYPE_CHECKING:
    from pathlib import Path


class _Strict(yaml.SafeLoader):
    """Refuses keys that repeat or are no text, and integers that are read as another number.

    YAML takes the last of repeated keys, ``no`` as false, ``010`` as 8 and ``1:30`` as 90.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                written = key.value if isinstance(key, yaml.ScalarNode) else "..."
                msg = f"line {line}: YAML does not read the name {written!r} as text; put it in quotes"
                raise ValueError(msg)
            if key.value in found:
                msg = f"line {line}: {key.value!r} stands there twice; rename or remove one"
                raise ValueError(msg)
            found.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_plain_int(self, node: Any) -> int:
        value: int = self.construct_yaml_int(node)
        if str(value) != node.value:
            msg = f"line {node.start_mark.line + 1}: YAML reads {node.value!r} as the number {value}; put it in quotes, or write that number"
            raise ValueError(msg)
        return value


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_plain_int)


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a YAML file.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is no YAML, holds no entries, a name repeats or is no text, or an integer is not read as it is written; the message says in which line.
    """
    try:
        content = yaml.load(check_file(path).read_text(encoding="utf-8-sig"), _Strict)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        msg = f"{path} is no YAML ({line}{error.problem}); check indents, colons and quotes there."
        raise ValueError(msg) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path} is no YAML in UTF-8 ({type(error).__name__}); save it as text."
        raise ValueError(msg) from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        msg = f"{path}, {error}."
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds {type(content).__name__}, not entries such as 'sections:'; stmsi cohort --example prints one."
        raise ValueError(msg)
    return content
