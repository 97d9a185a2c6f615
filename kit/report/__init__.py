"""What a chapter reports: numbers with their intervals and the paper's value, tables, figures, and the scoreboard."""

from kit.report import figures
from kit.report.intervals import bootstrap_mean, paired, wilson
from kit.report.measured import Measured
from kit.report.numbers import record, records
from kit.report.tables import Strong, table
from kit.report.transfer import holm, transfer_means, transfer_summary, transfer_table

__all__ = [
    "Measured", "Strong", "bootstrap_mean", "figures", "holm", "paired", "record", "records", "table",
    "transfer_means", "transfer_summary", "transfer_table", "wilson",
]
