"""The first tables

Revision: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "listings",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("publisher", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("search_text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_listings"),
        sa.UniqueConstraint("publisher", "name", name="uq_listings_publisher_name"),
    )
    op.create_table(
        "usage_batches",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_batches"),
    )
    op.create_table(
        "listing_versions",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("listing_id", WHOLE, nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("protocol", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("schema", sa.JSON(), nullable=False),
        sa.Column("example", sa.JSON(), nullable=False),
        sa.Column("conformance", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["listing_id"], ["listings.id"], name="fk_listing_versions_listing_id_listings"),
        sa.PrimaryKeyConstraint("id", name="pk_listing_versions"),
        sa.UniqueConstraint("listing_id", "number", name="uq_listing_versions_listing_id_number"),
    )
    op.create_index("ix_listing_versions_listing_id", "listing_versions", ["listing_id"], unique=False)

    op.create_table(
        "plans",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("listing_id", WHOLE, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("position", WHOLE, nullable=False),
        sa.Column("calls_per_day", WHOLE, nullable=True),
        sa.Column("calls_per_second", WHOLE, nullable=True),
        sa.Column("concurrency", WHOLE, nullable=True),
        sa.Column("price_per_1000_calls", sa.Numeric(precision=12, scale=4), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["listing_id"], ["listings.id"], name="fk_plans_listing_id_listings"),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
    )
    op.create_index("ix_plans_listing_id", "plans", ["listing_id"], unique=False)
    op.create_index(
        "one_offered_plan",
        "plans",
        ["listing_id", "name"],
        unique=True,
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    )

    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("listing_id", WHOLE, nullable=False),
        sa.Column("plan_id", WHOLE, nullable=False),
        sa.Column("subscriber", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["listing_id"], ["listings.id"], name="fk_subscriptions_listing_id_listings"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_subscriptions_plan_id_plans"),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
        sa.UniqueConstraint("listing_id", "subscriber", name="uq_subscriptions_listing_id_subscriber"),
    )
    op.create_index("ix_subscriptions_listing_id", "subscriptions", ["listing_id"], unique=False)
    op.create_index("ix_subscriptions_subscriber", "subscriptions", ["subscriber"], unique=False)

    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("subscription_id", sa.String(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["subscription_id"], ["subscriptions.id"], name="fk_api_keys_subscription_id_subscriptions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_index("ix_api_keys_subscription_id", "api_keys", ["subscription_id"], unique=False)

    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("version_id", WHOLE, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("calls", WHOLE, nullable=False),
        sa.Column("errors", WHOLE, nullable=False),
        sa.Column("rejected", WHOLE, nullable=False),
        sa.Column("bytes_in", WHOLE, nullable=False),
        sa.Column("bytes_out", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_usage_key_id_api_keys"),
        sa.ForeignKeyConstraint(["version_id"], ["listing_versions.id"], name="fk_usage_version_id_listing_versions"),
        sa.PrimaryKeyConstraint("key_id", "version_id", "day", name="pk_usage"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_latency",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("version_id", WHOLE, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("bucket", WHOLE, nullable=False),
        sa.Column("calls", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_usage_latency_key_id_api_keys"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["listing_versions.id"], name="fk_usage_latency_version_id_listing_versions"
        ),
        sa.PrimaryKeyConstraint("key_id", "version_id", "day", "bucket", name="pk_usage_latency"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in (
        "usage_latency",
        "usage",
        "api_keys",
        "subscriptions",
        "plans",
        "listing_versions",
        "usage_batches",
        "listings",
    ):
        op.drop_table(table)
