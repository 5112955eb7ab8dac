"""The report of a run: pictures, a movie and a page, written into the run folder.

`write_report` takes `ReportData`: arrays, numbers and two NumPy callables. Only `collect`,
which gathers them from a trainer and its run folder, imports torch.
"""

from training.report.data import Frame, ReportData
from training.report.write import write_live, write_report

__all__ = ["Frame", "ReportData", "write_live", "write_report"]
