"""The programs of the system and their settings, found where each keeps them."""

import importlib

from shared.config.common import CommonConfig

ROLES = ("gateway", "target_worker", "draft_worker")


def config_of(module: str) -> type[CommonConfig]:
    """The settings of `python -m <module>`: the one config Struct defined in `<module>.config`."""
    home = importlib.import_module(f"{module}.config")
    (found,) = (
        one
        for one in vars(home).values()
        if isinstance(one, type)
        and issubclass(one, CommonConfig)
        and one.__module__ == home.__name__
    )
    return found
