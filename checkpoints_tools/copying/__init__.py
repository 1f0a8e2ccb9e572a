"""Copy tensors between places on disk: at the speed of `cp`, in bounded memory, resumable after a crash."""
