"""GPU jobs on AWS: temporary instances that a control instance starts, and that end by themselves.

pipeline = Pipeline.load(Path("pipeline.json"))
job = submit(pipeline, script="app/train.sh", token="order-17", max_cost=2.0)
for event in follow(pipeline, job.id): ...
"""

from __future__ import annotations

from fleet.jobs.ending import Reaped, cancel, reap
from fleet.jobs.launch import limits, submit
from fleet.jobs.look import Job, Result, Status, find, jobs
from fleet.jobs.pipeline import JobError, NoCapacity, Pipeline
from fleet.jobs.watch import follow, logs

__all__ = [
    "Job",
    "JobError",
    "NoCapacity",
    "Pipeline",
    "Reaped",
    "Result",
    "Status",
    "cancel",
    "find",
    "follow",
    "jobs",
    "limits",
    "logs",
    "reap",
    "submit",
]
