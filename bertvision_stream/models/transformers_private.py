"""All that this project uses of transformers beyond its documented interface, in one place.

What stands here says what it is for and what happens without it: no run depends on it. When an
upgrade of transformers takes it away, `tests/models/test_transformers_private.py` fails and names
it. Two more things are beyond the interface and cannot stand here: `AdapterPoolerModel` sets the
attributes `_keep_in_fp32_modules_strict` and `_supports_*`, as every model of transformers does;
and `bertvision_stream/__init__.py` names the modules of the auto classes. The same tests look for
both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def without_initial_weights() -> AbstractContextManager[None]:
    """While it lasts, new models have the memory of their weights, and no values in it.

    For models whose weights are made up or loaded afterwards. Without it they are initialised in
    vain, which takes seconds for a large model.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        return nullcontext()
    return no_init_weights()
