"""Readers of public logs: what others published, as the project's events, catalogue, users or sequences.

    data = open_data("kuairand:../shared/data/kuairand-pure")     # LogData
    data = open_data("sim:users=50,days=2,drift=1")               # LogData
    data = open_data("ml-1m:../shared/data/ml-1m")                # LeaveOneOut

No data set ships with the project; each reader's module says where its data are published.
"""

from training.readers.kuairand import read_kuairand, read_kuairand_history
from training.readers.leave_one_out import LeaveOneOut, read_leave_one_out
from training.readers.log_data import LogData
from training.readers.open import KINDS, open_data

__all__ = [
    "KINDS",
    "LeaveOneOut",
    "LogData",
    "open_data",
    "read_kuairand",
    "read_kuairand_history",
    "read_leave_one_out",
]
