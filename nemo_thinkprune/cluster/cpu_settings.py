"""Names that the driver and the CPU workers share."""

WORKER = "nemo_thinkprune.cluster.cpu_worker.CpuPolicyWorker"
JOB_KEY = "thinkprune_job"
"""Key of the policy section under which a CPU worker finds its JOB.json."""
