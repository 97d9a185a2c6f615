"""What a chapter reports: numbers with their intervals and the paper's value, tables, figures, and the scoreboard."""

from kit.report import figures
from kit.report.intervals import bootstrap_mean, paired, wilson
from kit.report.numbers import record, records
from kit.report.tables import table

__all__ = ["bootstrap_mean", "figures", "paired", "record", "records", "table", "wilson"]
