"""Train small heads on a frozen BERT from a stream of hidden states, with nothing on disk.

Whoever imports this package can load what a run leaves in `model/` with transformers' auto classes
and pipelines. transformers itself is not imported for that, since it takes seconds that settings,
tables and the feature stream do without: our classes are registered when its auto classes are
imported, be it before or after.
"""

from importlib import import_module

from wrapt import when_imported

__version__ = "0.1.0"

when_imported("transformers.models.auto.configuration_auto")(
    lambda _: import_module("bertvision_stream.models.head_config")
)
when_imported("transformers.models.auto.modeling_auto")(
    lambda _: import_module("bertvision_stream.models.head_model")
)
