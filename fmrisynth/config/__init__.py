"""Typed configuration: one frozen pydantic model per stage."""
