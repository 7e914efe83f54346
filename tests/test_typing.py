"""The stub of the compiled module says what the module is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import diffstategrad
from diffstategrad import _core

STUB = Path(diffstategrad.__file__).with_name("_core.pyi")


def of_stub(node):
    """(name, kind, default) of every parameter of a stub function."""
    a = node.args
    assert not (a.kwonlyargs or a.vararg or a.kwarg)
    parameters = [(p.arg, "positional") for p in a.posonlyargs]
    parameters += [(p.arg, "any") for p in a.args]
    defaults = [None] * (len(parameters) - len(a.defaults))
    defaults += [ast.literal_eval(d) for d in a.defaults]
    return [
        (*p, d) for p, d in zip(parameters, defaults, strict=True) if p[0] != "self"
    ]


def of_module(function):
    kinds = {inspect.Parameter.POSITIONAL_ONLY: "positional"}
    return [
        (p.name, kinds.get(p.kind, "any"), None if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


def names(scope):
    return {name for name in vars(scope) if not name.startswith("_")}


BODY = ast.parse(STUB.read_text()).body
FUNCTIONS = {n.name: n for n in BODY if isinstance(n, ast.FunctionDef)}
CLASSES = {
    n.name: {m.name: m for m in n.body if isinstance(m, ast.FunctionDef)}
    for n in BODY
    if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
}


def test_stub_and_module_have_the_same_names():
    assert names(_core) == FUNCTIONS.keys() | CLASSES.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_signature_of_the_stub(name):
    assert of_module(getattr(_core, name)) == of_stub(FUNCTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_members_of_the_stub(name):
    cls, members = getattr(_core, name), dict(CLASSES[name])
    constructor = members.pop("__init__", None)
    if constructor is not None:
        assert of_module(cls) == of_stub(constructor)
    assert names(cls) == members.keys()
    for member, node in members.items():
        if node.decorator_list:
            assert inspect.isgetsetdescriptor(getattr(cls, member))
        else:
            assert of_module(getattr(cls, member)) == of_stub(node)


def test_info_has_the_keys_of_the_stub():
    node = next(n for n in BODY if isinstance(n, ast.ClassDef) and n.name == "_Info")
    assert _core.info().keys() == {entry.target.id for entry in node.body}


def test_everything_in_the_module_has_a_docstring():
    for name in FUNCTIONS.keys() | CLASSES.keys():
        assert getattr(_core, name).__doc__, name
