"""From weather forecasts to rain probabilities by self-supervised learning.

The entry points below are loaded when they are first used, so `import sslpdl_nb` is quick:

    from sslpdl_nb import VARIABLES, Config, load_splits, pretrain, finetune, predict
    from sslpdl_nb import from_pretrained
"""

__version__ = "0.2.0"

import sys
from importlib import import_module
from types import ModuleType

# Name -> module that defines it
_ENTRY_POINTS = {
    "VARIABLES": "core",
    "Config": "core",
    "get_config": "core",
    "load_splits": "store",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "predict": "predict",
    "from_pretrained": "weights",
}
__all__ = list(_ENTRY_POINTS)


class _CallableModule(ModuleType):
    "A module that can be called: it passes the call on to the function of its own name."

    def __call__(self, *args, **kwargs):
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """This package.

    `pretrain`, `finetune` and `predict` are modules, and each defines a function of the same name.
    Python binds a module to its package when it is imported for the first time; from then on the
    module hides the function. So these three modules are made callable at that moment, and
    `from sslpdl_nb import pretrain` gives something to call in whatever order things are imported.
    """

    def __setattr__(self, name, value):
        if _ENTRY_POINTS.get(name) == name and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name):
    "Load an entry point."
    if name not in _ENTRY_POINTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_ENTRY_POINTS[name]}")
    return module if _ENTRY_POINTS[name] == name else getattr(module, name)


def __dir__():
    "The entry points beside what is loaded."
    return sorted({*globals(), *__all__})
