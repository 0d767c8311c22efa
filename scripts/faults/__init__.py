"""The parts of scripts/chaos.py, one module each: kills, replies, loss, byzantine, gate.

A part is a function `NAME(amount, settings: Settings) -> Outcome`: it does its harm, holds what comes out against what
comes out without it, and tells both. What `Settings` and `Outcome` are stands in outcome.py; federations whose replies
are tampered with on the way in runs.py.
"""
