"""Public methods, given what they do not take: each says what it takes, before anything is done."""

from __future__ import annotations

import inspect

import pytest

from vmlab.errors import UsageError
from vmlab.image import Image
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot


class Odd:
    """What no method takes."""

    def __repr__(self):
        return "<odd>"


def methods():
    for cls in (Lab, Machine, Snapshot, Image):
        for name in dir(cls):
            method = inspect.getattr_static(cls, name)
            if inspect.isfunction(method) and not name.startswith("_"):
                yield cls, name, method


def fitting(cls, parameter):
    """Return an argument that fits, for what must be given."""
    if "Sequence" in str(parameter.annotation):
        return []
    if "Snapshot" in str(parameter.annotation):
        return object.__new__(Snapshot)
    return 1 if parameter.annotation == "int" else "x"


def cases():
    for cls, name, method in methods():
        parameters = list(inspect.signature(method).parameters.values())[1:]
        target = getattr(inspect.unwrap(method), "options_of", lambda: None)()
        options = [
            one for one in (inspect.signature(target).parameters.values() if target else ())
            if (one.kind is one.KEYWORD_ONLY or inspect.isclass(target)) and "Moved" not in one.annotation
        ]  # fmt: skip
        for parameter in [*parameters, *options]:
            if parameter.kind is not parameter.VAR_KEYWORD:
                yield pytest.param(
                    cls, name, parameters, parameter, id=f"{cls.__name__}.{name}-{parameter.name}"
                )


@pytest.mark.parametrize(("cls", "name", "parameters", "parameter"), cases())
def test_a_wrong_type_is_told(cls, name, parameters, parameter):
    needed = {
        one.name: fitting(cls, one) for one in parameters
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    }  # fmt: skip
    several = parameter.kind is parameter.VAR_POSITIONAL
    # Only its class is made: whatever went past the check would fail in another way.
    method = getattr(object.__new__(cls), name)
    with pytest.raises(UsageError) as caught:
        method(Odd()) if several else method(**{**needed, parameter.name: Odd()})
    assert caught.value.message.startswith(f"{name}() takes ")
    assert f"as {parameter.name}, not <odd>." in caught.value.message


@pytest.mark.parametrize(
    ("cls", "name", "method"), [pytest.param(*m, id=f"{m[0].__name__}.{m[1]}") for m in methods()]
)
def test_an_argument_that_there_is_not(cls, name, method):
    with pytest.raises(UsageError, match=rf"{method.__name__}\(\): "):
        getattr(object.__new__(cls), name)(nosuchthing=1)


@pytest.mark.parametrize(
    ("call", "says", "hint"),
    [
        (lambda lab: lab.create("web", memory="1G"), "a whole number as memory, not '1G'", "RAM in MiB"),
        (lambda lab: lab.create("web", memory=True), "a whole number as memory", "RAM in MiB"),
        (lambda lab: lab.create("web", memory=1.5), "a whole number as memory", "RAM in MiB"),
        (lambda lab: lab.create("web", memmory=1), "unexpected keyword argument", "did you mean memory=?"),
        (lambda lab: lab.create(), "missing a required argument: 'name'", "create(name, image='tiny', *, memory=None"),
        (lambda lab: lab.create("web", clock="later"), "'then' or 'now' as clock, not 'later'", "the time"),
        (lambda lab: lab.create("web", disks="1G"), "a list as disks", "Sizes in bytes"),
        (lambda lab: lab.create("web", disks=[1 << 30, "1G"]), "a list as disks", "Sizes in bytes"),
        (lambda lab: lab.create("web", forwards=80), "as forwards, not 80", "port in the guest"),
        (lambda lab: lab.timeline("web"), "a list as states, not 'web'", "As in"),
        (lambda lab: lab.import_image("x", "y", memory="1G"), "a whole number as memory", None),
        (lambda lab: lab.import_image("x", "y", memry=1), "unexpected keyword argument 'memry'", "memory=?"),
        (lambda lab: lab.hardware("tiny", vcpu=1), "unexpected keyword argument 'vcpu'", "vcpus=?"),
    ],
)  # fmt: skip
def test_what_is_told(call, says, hint):
    with pytest.raises(UsageError) as caught:
        call(object.__new__(Lab))
    assert says in caught.value.message
    assert hint is None or hint in caught.value.hint
