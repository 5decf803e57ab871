"""GPU jobs from a Celery worker on the control instance.

The worker may be killed at any moment: the task is delivered again, finds its job by the task's id and goes
on following it. The job ends by itself, with a worker or without.

    celery --app celery_jobs worker
    process.delay("app/simulate_pipeline.sh", ["recording-17"], max_cost=2.0)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from celery import Celery

from fleet.jobs import Job, NoCapacity, Pipeline, find, follow, submit

# Written once, where the stack is: pulumi stack output --json > pipeline.json
PIPELINE = Path("/etc/vllm-fleet/pipeline.json")

CAPACITY_RETRY_S = 300

app = Celery("jobs", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
# A task is acknowledged when it is done, so that one whose worker died is delivered again; and Redis must not
# take a long one for dead: the longest job may take two days.
app.conf.update(task_acks_late=True, broker_transport_options={"visibility_timeout": 3 * 24 * 3600})

log = logging.getLogger(__name__)


@app.task(bind=True, max_retries=12)
def process(
    self: Any,
    script: str,
    args: list[str],
    *,
    max_cost: float | None = None,
    timeout_minutes: int | None = None,
) -> dict[str, Any]:
    """Run a script of the share on a GPU instance; how it ended and what it cost."""
    pipeline = Pipeline.load(PIPELINE)
    try:
        job = submit(
            pipeline,
            script=script,
            args=args,
            token=self.request.id,
            max_cost=max_cost,
            timeout_minutes=timeout_minutes,
        )
    except NoCapacity as error:
        raise self.retry(exc=error, countdown=CAPACITY_RETRY_S) from error
    for event in follow(pipeline, job.id):
        if isinstance(event, Job):
            self.update_state(state="PROGRESS", meta={"job": job.id, "status": str(event.status)})
        else:
            log.info("%s %s", job.id, event)
    return told(find(pipeline, job.id) or job)


def told(job: Job) -> dict[str, Any]:
    """A job as a task's result."""
    result = job.result
    return {
        "job": job.id,
        "status": str(job.status),
        "reason": result.reason if result else job.why,
        "exit_code": result.exit_code if result else None,
        "cost_usd": result.cost if result else None,
    }
