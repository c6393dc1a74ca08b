"""The engines that the device thread steps: one for each lane, and a scripted one for measuring everything else."""
