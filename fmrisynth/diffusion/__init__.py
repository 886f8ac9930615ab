"""Diffusion mathematics: schedules, objectives, samplers, guidance and EMA.

Depends on torch and the package's errors only.
"""
