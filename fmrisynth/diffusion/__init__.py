"""Diffusion mathematics: schedules, objectives, samplers, guidance, EMA and the condition prior.

Depends on torch, numpy and the package's errors only.
"""
