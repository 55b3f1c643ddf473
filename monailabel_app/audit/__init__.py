"""Who did what with which model, in a log that cannot be changed unnoticed; torch-free."""

from .journal import AUDIT_ENVIRONMENT, Journal, command_journal, command_noted, log_file, note_command
from .log import FILE, AuditLog, AuditUnwritable

__all__ = [
    "AUDIT_ENVIRONMENT", "FILE", "AuditLog", "AuditUnwritable", "Journal", "command_journal", "command_noted",
    "log_file", "note_command",
]  # fmt: skip
