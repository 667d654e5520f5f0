"""Calls, their tools and turns, callers, and work on memories."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "calls",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("room", sa.String, nullable=False),
        sa.Column("worker_id", sa.String, nullable=False),
        sa.Column("campaign_id", sa.String),
        sa.Column("contact_id", sa.String),
        sa.Column("direction", sa.String, nullable=False),
        sa.Column("number", sa.String),
        sa.Column("dialed_number", sa.String),
        sa.Column("dispatched_at", moment, nullable=False),
        sa.Column("ringing_at", moment),
        sa.Column("answered_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("disposition", sa.String),
        sa.Column("message_left", sa.Boolean, nullable=False),
        sa.Column("ended_by", sa.String),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("sip_status", sa.Integer),
        sa.Column("destination", sa.String),
        sa.Column("turns", sa.Integer, nullable=False),
        sa.Column("interruptions", sa.Integer, nullable=False),
        sa.Column("reply_p50_ms", sa.Float),
        sa.Column("reply_p95_ms", sa.Float),
        sa.Column("usage", sa.JSON, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("lease_until", moment),
    )
    op.create_index("calls_dispatched_at", "calls", ["dispatched_at"])
    op.create_index("calls_lease_until", "calls", ["lease_until"])
    op.create_table(
        "tool_calls",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("call_id", sa.String, nullable=False, index=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("ms", sa.Float, nullable=False),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("call_id", sa.String, nullable=False, index=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("speaker", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("is_interrupted", sa.Boolean, nullable=False),
    )
    op.create_table(
        "callers",
        sa.Column("number", sa.String, primary_key=True),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
    )
    op.create_table(
        "memory_work",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("call_id", sa.String, nullable=False),
        sa.Column("number", sa.String, nullable=False, index=True),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", moment, nullable=False),
    )
