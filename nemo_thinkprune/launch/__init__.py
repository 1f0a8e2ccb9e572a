"""Start runs on clusters, watch them, end them: Slurm jobs and Ray jobs."""
