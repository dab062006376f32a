"""Train small heads on a frozen BERT from a stream of hidden states, with nothing on disk.

Whoever imports this package can load what a run leaves in `model/` with transformers' auto classes
and pipelines. transformers itself is not imported for that, since it takes seconds that settings,
tables and the feature stream do without: our classes are registered when its auto classes are
imported, be it before or after.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# The modules of transformers' auto classes, and ours that register with them.
_REGISTERING = {
    "transformers.models.auto.configuration_auto": "bertvision_stream.models.head_config",
    "transformers.models.auto.modeling_auto": "bertvision_stream.models.head_model",
}


# The analysis of a search: in notebooks `from ray import tune` takes the name of our package.
_ANALYSIS = ("read_search", "trial_table", "best_trial", "write_analysis")


def __getattr__(name: str) -> Any:
    """Imports the analysis of a search when it is asked for: it loads Ray."""
    if name not in _ANALYSIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bertvision_stream.utils.own_packages import claim_own_packages

    claim_own_packages()
    return getattr(import_module("tune.analysis"), name)


class _RegisterOnImport(MetaPathFinder):
    """Finds the modules of the auto classes as Python does, and imports ours right after them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTERING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import_module(_REGISTERING[fullname])

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _RegisterOnImport())
for _theirs, _ours in _REGISTERING.items():
    if _theirs in sys.modules:
        import_module(_ours)
