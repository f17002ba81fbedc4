"""Runs, messages, batches and errors as plain data: no I/O, and no knowledge of who stores or sends them."""

from __future__ import annotations

from typing import TypeAlias

#: What a JSON text can say. Numbers are `int` or `float`; a decimal that must stay exact travels as `Decimal`
#: and becomes a float where it is written to the wire.
Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
