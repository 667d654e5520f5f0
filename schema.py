"""The tables of the records database, and how it is reached and brought up to date."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, DateTime, Engine, Text, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MIGRATIONS = Path(__file__).parent / "migrations"
WORKER_LOST = "worker lost"
_MIGRATION_LOCK = 7_236_451
"""Key of the Postgres advisory lock that migrations are held under."""
POSTGRES = {
    "connect_timeout": "2",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
}
"""Silence of the server is noticed in 10 s (tcp_user_timeout: ms)."""


class Moment(TypeDecorator):
    """A time in UTC, also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(timezone.utc) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value


class Base(DeclarativeBase):
    type_annotation_map = {datetime: Moment}  # noqa: RUF012 SQLAlchemy's own declaration


class CallRow(Base):
    """One call; `tool_calls` and `said` are filled by `Records.get` alone."""

    __tablename__ = "calls"
    __allow_unmapped__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str]
    room: Mapped[str]
    worker_id: Mapped[str]
    campaign_id: Mapped[str | None]
    contact_id: Mapped[str | None]
    direction: Mapped[str]
    number: Mapped[str | None]
    dialed_number: Mapped[str | None]
    dispatched_at: Mapped[datetime]
    ringing_at: Mapped[datetime | None]
    answered_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    disposition: Mapped[str | None]
    message_left: Mapped[bool]
    ended_by: Mapped[str | None]
    reason: Mapped[str]
    sip_status: Mapped[int | None]
    destination: Mapped[str | None]
    turns: Mapped[int]
    interruptions: Mapped[int]
    reply_p50_ms: Mapped[float | None]
    reply_p95_ms: Mapped[float | None]
    usage: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    errors: Mapped[list[str]] = mapped_column(JSON)
    version: Mapped[str]
    lease_until: Mapped[datetime | None]

    tool_calls: list[ToolCallRow] = []  # noqa: RUF012 replaced, never changed
    said: list[TurnRow] = []  # noqa: RUF012 replaced, never changed

    def fields(self) -> list[tuple[str, Any]]:
        """Names and values of all columns."""
        return [(column.name, getattr(self, column.name)) for column in self.__table__.columns]


class ToolCallRow(Base):
    __tablename__ = "tool_calls"

    id: Mapped[int] = mapped_column(primary_key=True)
    call_id: Mapped[str]
    at: Mapped[datetime]
    name: Mapped[str]
    code: Mapped[str]
    ms: Mapped[float]


class TurnRow(Base):
    __tablename__ = "turns"

    id: Mapped[int] = mapped_column(primary_key=True)
    call_id: Mapped[str]
    at: Mapped[datetime]
    speaker: Mapped[str]
    text: Mapped[str] = mapped_column(Text)
    is_interrupted: Mapped[bool]


class CallerRow(Base):
    __tablename__ = "callers"

    number: Mapped[str] = mapped_column(primary_key=True)
    facts: Mapped[list[str]] = mapped_column(JSON)
    updated_at: Mapped[datetime]


@dataclass(frozen=True)
class Work:
    """Work on a caller's memories: `kind` is learn, remember or forget."""

    id: str
    kind: str
    call_id: str
    number: str
    content: list[str]
    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class WorkRow(Base):
    __tablename__ = "memory_work"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    call_id: Mapped[str]
    number: Mapped[str]
    content: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]

    def to_work(self) -> Work:
        content = list(self.content)
        return Work(self.id, self.kind, self.call_id, self.number, content, self.created_at)


class ForgettingRow(Base):
    """When a caller was last forgotten: what waited in a file since before is not written."""

    __tablename__ = "forgettings"

    number_hash: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]


def connect(url: str) -> Engine:
    """An engine whose connections give up within seconds, so that no call waits for them."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(
            _patient_for_seconds(parsed), pool_pre_ping=True, pool_timeout=5, hide_parameters=True
        )
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": 5}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")

    return engine


def _patient_for_seconds(url: URL) -> URL:
    """The URL with our driver, and with `POSTGRES` where it says nothing itself."""
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    return url.set(query=POSTGRES | dict(url.query))


def migrate(engine: Engine, folder: Path) -> None:
    """Upgrade to the newest schema; other workers wait meanwhile."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with _alone(engine, folder), engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _alone(engine: Engine, folder: Path) -> Iterator[None]:
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text(f"select pg_advisory_lock({_MIGRATION_LOCK})"))
            yield
            connection.execute(text(f"select pg_advisory_unlock({_MIGRATION_LOCK})"))
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "migration.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
