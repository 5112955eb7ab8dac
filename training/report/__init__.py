"""The report of a run: what a person is shown of it, as pictures and on one page.

`write_report` takes a `Story`, plain arrays and callables, and writes into the run
folder. Nothing here knows torch, so that whatever was trained can be shown.
"""

from training.report.story import Frame, Story
from training.report.write import write_live, write_report

__all__ = ["Frame", "Story", "write_live", "write_report"]
