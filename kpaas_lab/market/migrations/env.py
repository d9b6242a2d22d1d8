"""Runs the migrations on the connection that `kpaas_lab.market.database` gives, in its transaction."""

from alembic import context

from kpaas_lab.market.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite's is, once its transactions begin explicitly: a kill leaves no half a schema
    render_as_batch=True,
)
context.run_migrations()
