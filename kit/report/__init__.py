"""What a chapter reports: numbers with their intervals and the paper's value, verdicts, tables, figures, scoreboard."""

from kit.report import figures
from kit.report.intervals import Estimate, bootstrap_mean, mean, paired, share, wilson
from kit.report.measured import Measured
from kit.report.numbers import record, record_table, records, verdict, verdicts
from kit.report.seeds import seed
from kit.report.tables import Strong, table
from kit.report.transfer import holm, transfer_means, transfer_summary, transfer_table

__all__ = [
    "Estimate", "Measured", "Strong", "bootstrap_mean", "figures", "holm", "mean", "paired", "record", "record_table",
    "records", "seed", "share", "table", "transfer_means", "transfer_summary", "transfer_table", "verdict", "verdicts",
    "wilson",
]
