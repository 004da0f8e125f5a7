"""The page of all settings, docs/configuration.md, written from the classes of the configuration.

``python -m pipeline.reference > docs/configuration.md`` makes it anew. The docstring below a setting says
what it means; what no class says (which keys the rules set, how far a change reaches) stands here.
"""

import ast
import inspect
import itertools
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from mtmsd.heads import CLASSIFIERS, FUSIONS
from pipeline.config import Config
from pipeline.fingerprints import STAGE_SECTIONS

BY_RULE = {
    "reduce.components", "patches.size", "pretrain.steps", "pretrain.precision",
    "features.precision", "split.train_fraction",
}  # fmt: skip
"""Keys that pipeline/defaults.py sets where the user has not."""

_CHOICES = {
    "fusion.kind": [f"`{kind}`" for kind in FUSIONS],
    "classifier.kind": [f"`{kind}`" for kind in CLASSIFIERS],
}
_NAMES = {int: ["integer"], float: ["number"], bool: ["`true`", "`false`"], type(None): ["none"]}
_NOTES = {
    "seed": "While `split.inductive` is `true`, a change needs `--from reduce`.",
    "patches": "For `window`, `stride` and `blend`, `--from extract` is enough.",
    "pretrain": "`checkpoint_every` changes no result and needs no `--from`.",
    "split": "A change of `inductive`, and any change while it is `true`, needs `--from reduce`.",
    "classifier": "A change of `kind`, or of `patch` where the kind reads it, needs `--from extract`; to or "
    "from `ssftt`, which takes no U-Net, `--from pretrain`.",
    "map": "`pixels` changes no result and needs no `--from`.",
    "supertokens": "Can be set beside `map.regions: supertokens` alone.",
    "cluster": "No `--from` is needed, but for `train_workers`, which `pretrain` reads.",
}
_HEAD = """\
<!-- Written by python -m pipeline.reference from the docstrings of the configuration: change those. -->
# All settings

Settings stand section by section in a YAML file (`features: {stages: [3, 5]}`) that `--config my.yaml` names,
or are given one at a time, which overrides the file: `--set "features.stages=[3, 5]"`, in quotes where the
value has brackets. `--dry-run` prints the configuration that a run would have, and runs nothing. Each section
says which stages read it: where the first of them is done already, a change needs `--from` that stage, or
another `--out`; a command without either is refused, and the message names the stage.

*By rule*: the scene or the machine decides ([README](../README.md#your-own-scene)). *None*: no value, `null`
in YAML, which is what "absent" means in the last column.
"""


def page() -> str:
    """The whole page, Markdown."""
    kinds = get_type_hints(Config)
    models = {name: kinds[name] if _fields(kinds[name]) else Config for name in Config.model_fields}
    return "\n".join([_HEAD, *(_part(section, model) for section, model in models.items())])


def _part(section: str, model: type) -> str:
    about = ["Outside the sections." if model is Config else str(inspect.getdoc(model)).split("\n\n")[0]]
    if stages := [f"`{stage}`" for stage, names in STAGE_SECTIONS.items() if section in names]:
        about.append(f"Read by {', '.join(stages)}.")
    about += [_NOTES[section]] if section in _NOTES else []
    table = [("key", "value", "default", "meaning"), ("---",) * 4, *_rows(section, model)]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in table]
    return "\n".join([f"## {section}", _cell(" ".join(about)), "", *lines, ""])


def _rows(section: str, model: type) -> Iterator[tuple[str, str, str, str]]:
    kinds, meanings = get_type_hints(model), _meanings(model)
    for name, field in _fields(model).items():
        key = name if model is Config else f"{section}.{name}"
        if model is Config and name != section:
            continue
        value = " or ".join(_CHOICES.get(key) or _values(kinds[name]))
        default = "by rule" if key in BY_RULE else _default(field.default)
        yield f"`{key}`", value, default, meanings.get(name, "")


def _fields(model: Any) -> dict[str, Any]:
    """The fields of a section; anything else has none."""
    return getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {})


def _meanings(model: type) -> dict[str, str]:
    """Attribute -> the docstring below it."""
    (tree,) = ast.parse(inspect.getsource(model)).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        above.target.id: str(below.value.value)
        for above, below in itertools.pairwise(body)
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _values(kind: Any) -> list[str]:
    """What can be given, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [f"`{name}`" for name in inner]
    if origin in (Union, UnionType):
        return [word for one in inner for word in _values(one)]
    if origin is tuple:
        words = " and ".join(_values(inner[0]))
        return [f"list of {words.replace('list', 'lists')}" + "s" * words.isalpha()]
    return _NAMES[kind]


def _default(value: Any) -> str:
    """As YAML has it."""
    return "none" if value is None else f"`{yaml.safe_dump([value], default_flow_style=True)[1:-2]}`"


def _cell(text: str) -> str:
    """A docstring as one line of Markdown that can stand in a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    print(page(), end="")
