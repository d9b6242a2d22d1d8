"""The database that other tests stand on is real, empty, and each test's own."""

import sqlalchemy


def test_is_postgresql_and_takes_writes(postgres: str) -> None:
    engine = sqlalchemy.create_engine(postgres)
    with engine.begin() as connection:
        assert engine.dialect.name == "postgresql"
        connection.execute(sqlalchemy.text("CREATE TABLE left_behind (n int)"))
    engine.dispose()


def test_is_empty_again(postgres: str) -> None:
    engine = sqlalchemy.create_engine(postgres)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()
