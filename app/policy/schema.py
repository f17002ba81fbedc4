"""What keeps the registry's fields from the columns of the real table: pure, so that start and doctor say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from app.errors import did_you_mean
from app.fields import RUN_ID, FieldType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from app.fields import Field, Registry
    from app.policy.asking import Column

#: Airtable's words for the columns that take what a field of each type sends (its API reference, "Field types").
TAKES: Final[Mapping[FieldType, Sequence[str]]] = {
    FieldType.TEXT: ("singleLineText", "multilineText", "richText", "email", "url", "phoneNumber"),
    FieldType.LOG: ("multilineText", "richText"),
    FieldType.INTEGER: ("number", "currency", "percent", "duration"),
    FieldType.DECIMAL: ("number", "currency", "percent", "duration"),
    FieldType.DATETIME: ("dateTime",),
    FieldType.SELECT: ("singleSelect",),
}
#: An upsert finds its record by this column, and Airtable merges on plain text only.
_TAKES_RUN_ID: Final = ("singleLineText", "multilineText")
#: Columns that Airtable fills by itself: nobody can write them.
COMPUTED: Final = frozenset(
    {
        "aiText",
        "autoNumber",
        "button",
        "count",
        "createdBy",
        "createdTime",
        "externalSyncSource",
        "formula",
        "lastModifiedBy",
        "lastModifiedTime",
        "lookup",
        "multipleLookupValues",
        "rollup",
    }
)


#: How Airtable's refusals begin that a changed schema explains (its error types, and its words for computed fields).
_SCHEMA_REFUSALS: Final = (
    "UNKNOWN_FIELD_NAME",
    "INVALID_MULTIPLE_CHOICE_OPTIONS",
    "INVALID_VALUE_FOR_COLUMN",
    "CANNOT_UPDATE_READONLY_FIELD",
)


def may_be_schema(cause: str) -> bool:
    """Whether a refusal for this may mean that the table's columns are no longer what they were."""
    return cause.startswith(_SCHEMA_REFUSALS)


@dataclass(frozen=True, slots=True)
class SchemaFlaw:
    """One thing that is wrong, and what to do: `field` and `column` are empty where the table itself is missing."""

    detail: str
    field: str | None = None
    column: str | None = None


def schema_flaws(
    registry: Registry, columns: Sequence[Column] | None, *, table: str = "", tables: Sequence[str] = ()
) -> tuple[SchemaFlaw, ...]:
    """Every difference that would make Airtable refuse a write, in the order of the registry.

    `columns` is `None` where the base has no such table; `tables` are the names of those that it has.
    """
    if columns is None:
        hint = _near(table, tables)
        return (SchemaFlaw(f"the base has no table {table!r}: correct [airtable] table in config.toml{hint}"),)
    by_name = {column.name: column for column in columns}
    spare = [name for name in by_name if registry.name_of(name) is None]
    return tuple(
        SchemaFlaw(detail, field.name, field.column)
        for field in registry.values()
        for detail in _flaws_of(field, by_name.get(field.column), spare)
    )


def _flaws_of(field: Field, column: Column | None, spare: Sequence[str]) -> Iterator[str]:
    """What is wrong with a field's column. `spare` are the columns of no field, one of which may be meant."""
    place = f"[fields.{field.name}]"
    named = f"column {field.column!r} of field {field.name!r}"
    takes = _TAKES_RUN_ID if field.name == RUN_ID else TAKES[field.type]
    if column is None:
        yield (
            f"{named} is not in the table: add it there, or correct {place} column in config.toml"
            f"{_near(field.column, spare)}"
        )
    elif column.type in COMPUTED:
        yield (
            f"{named} is a {column.type}, which Airtable fills by itself and nobody can write: "
            f"give the field another column under {place}, or leave it out of config.toml"
        )
    elif column.type not in takes:
        yield (
            f"{named} is a {column.type}, and a field of type {field.type.value!r} needs {_either(takes)}: "
            f"change the column's type in the base, or {place} type in config.toml"
        )
    elif field.type is FieldType.SELECT:
        for option in field.options:
            if option not in column.options:
                yield (
                    f"{named} lacks the option {option!r}: add it in the base, or correct {place} options in "
                    f"config.toml{_near(option, [one for one in column.options if one not in field.options])}"
                )


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _near(word: str, known: Iterable[str]) -> str:
    """The closest known word as a question: one that differs in case or blanks only comes before any other."""
    names = list(known)
    same = next((name for name in names if _bare(name) == _bare(word)), None)
    return f"; did you mean {same!r}?" if same is not None else did_you_mean(word, names)


def _bare(word: str) -> str:
    return "".join(word.split()).casefold()
