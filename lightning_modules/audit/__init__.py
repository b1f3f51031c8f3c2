"""`aggregate-po audit-reward`: two graders on the same completions, and where they differ."""

from lightning_modules.audit.audit import Audit, Difference, Grades, audit_rewards
from lightning_modules.audit.rows import BadRow
from lightning_modules.audit.tables import audit_json, audit_table

__all__ = ["Audit", "BadRow", "Difference", "Grades", "audit_json", "audit_rewards", "audit_table"]
