"""USP workbench: train, run and measure simulators of users who talk to assistants.

Names are imported when they are first used, so that `import usp_lab` costs nothing and a notebook
depends on just the modules it names.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

# Public name -> the module that defines it. The runner reads this to find what a notebook uses.
_PUBLIC = {
    "load_dialogues": "data",
    "Profile": "profiles",
    "ProfileGenerator": "profile_generator",
    "build_profiles": "build_profiles",
    "with_profiles": "build_profiles",
    "write_dataset": "data",
    "ProfileSampler": "sampling",
    "AIDetector": "detector",
    "train_detector": "detector_training",
    "UserSimulator": "simulate",
    "simulate": "simulate",
    "train_sft": "sft",
    "train_rlcc": "rlcc",
    "metrics": "metrics",
    "stats": "stats",
    "load_runs": "results",
    "start": "record",
}
# Public modules; every other name is something inside its module.
_MODULES = {"metrics", "stats"}

__all__ = sorted(_PUBLIC)


class _Package(types.ModuleType):
    def __getattr__(self, name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
        value = module if name in _MODULES else getattr(module, name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module `simulate` binds it here under its name, which is also the public
        # function's: the function wins.
        if (
            isinstance(value, types.ModuleType)
            and _PUBLIC.get(name) == name
            and name not in _MODULES
        ):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package
