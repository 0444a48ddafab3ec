"""Branches on several GPUs or machines: `merit launch` (docs/machines.md).

Branches never talk to each other, so an engine has little to do: run a plain stage command
somewhere with some GPUs, say how it goes, go on where it was stopped. On this host these are
processes (`local`); on a cluster Slurm does it, through submitit (`slurm`).
"""
