"""Diffusion mathematics: schedules, objectives, samplers, guidance, EMA and the condition prior.

Depends on torch, numpy, the package's errors and `data.cosines` only.
"""
