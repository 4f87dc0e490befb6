"""What a run's metrics look like to people: a terminal table, a model card, one self-contained HTML page."""

from limbeck.report.card import write_card
from limbeck.report.html import write_report
from limbeck.report.plan import advice, plan_table
from limbeck.report.table import metrics_table

__all__ = ["advice", "metrics_table", "plan_table", "write_card", "write_report"]
