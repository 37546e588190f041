"""Columns as pandas frames. The one module of the trace that knows pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import MissingExtra
from workbench.trace.schema import COLUMNS, Kind, Table

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd

    Frame: TypeAlias = pd.DataFrame

# "string" is the same in pandas 2 and 3 and needs no pyarrow.
_PANDAS: dict[Kind, str] = {"int": "int64", "float": "float64", "bool": "bool", "text": "string"}


def frame(name: str, table: Table) -> Frame:
    """The table `name` as a DataFrame with the schema's columns and dtypes.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtra("tables need pandas: pip install 'workbench[notebook]'") from None
    columns: dict[str, Any] = {
        column.name: pandas.Series(table[column.name], dtype=_PANDAS[column.kind]) for column in COLUMNS[name]
    }
    return pandas.DataFrame(columns)
