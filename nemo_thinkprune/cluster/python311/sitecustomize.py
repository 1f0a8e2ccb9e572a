"""For Python 3.11 only: a folder on PYTHONPATH that makes NeMo-RL importable, in every process of a run.

NeMo-RL asks for Python 3.13 and gives pydantic models that hold `typing.TypedDict`, which pydantic takes from
3.12 on; `typing_extensions` has the same class for older versions.
"""

import typing

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict
