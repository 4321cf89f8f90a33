"""The programs of the system and their settings, found where each keeps them."""

import importlib

import msgspec

_HOMES = {
    "gateway": "gateway.config",
    "target_worker": "target_worker.config",
    "draft_worker": "draft_worker.config",
    "stack": "stack.config",
    "stack.demo": "stack.demo",
    "stack.health": "stack.health",
}
PROGRAMS = tuple(_HOMES)


def config_of(program: str) -> type[msgspec.Struct]:
    """The settings of `python -m <program>`: the one Struct called …Config in its home."""
    home = importlib.import_module(_HOMES[program])
    (found,) = (
        one
        for name, one in vars(home).items()
        if name.endswith("Config") and one.__module__ == home.__name__
    )
    assert isinstance(found, type)
    assert issubclass(found, msgspec.Struct)
    return found
