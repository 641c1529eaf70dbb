"""Writes the statements of the first revision again, from the tables as they are now.

Right only while no version of Sluice with a schema has been released: from then on a change of the
tables is a revision of its own. `python -m tests.initial_schema`
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.url import URL
from sqlalchemy.schema import CreateIndex, CreateTable

from ci_platform.store.tables import METADATA, SCHEMA
from git_store.tables import metadata as git_metadata

VERSIONS = Path(__file__).parents[1] / "ci_platform/store/migrations/versions"
DIALECTS: dict[str, Dialect] = {
    name: URL.create(driver).get_dialect()()
    for name, driver in (("sqlite", "sqlite"), ("postgresql", "postgresql+psycopg"))
}


def statements(metadata: MetaData, dialect: Dialect) -> list[str]:
    made = []
    for table in metadata.sorted_tables:
        if table is SCHEMA:  # it is there before the first revision: Alembic writes into it
            continue
        made.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made += [str(CreateIndex(index).compile(dialect=dialect)).strip() for index in indexes]
    return made


def main() -> None:
    for name, dialect in DIALECTS.items():
        (script,) = VERSIONS.glob(f"s*_{name}.sql")
        made = statements(METADATA, dialect) + statements(git_metadata, dialect)
        lines = "\n".join(f"{one};\n" for one in made).replace("\t", "    ")
        script.write_text("\n".join(line.rstrip() for line in lines.splitlines()) + "\n")


if __name__ == "__main__":
    main()
