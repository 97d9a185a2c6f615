"""What a chapter reports: numbers with their intervals and the paper's value, verdicts, tables, figures, scoreboard."""

from kit.report import figures
from kit.report.intervals import Estimate, bootstrap_mean, mean, paired, share, wilson
from kit.report.measured import Measured
from kit.report.numbers import record, record_table, records, verdict, verdicts
from kit.report.outcomes import Outcomes, holm
from kit.report.seeds import printed
from kit.report.tables import Strong, table

__all__ = [
    "Estimate", "Measured", "Outcomes", "Strong", "bootstrap_mean", "figures", "holm", "mean", "paired", "printed",
    "record", "record_table", "records", "share", "table", "verdict", "verdicts", "wilson",
]
