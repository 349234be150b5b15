"""The algorithm explained: a walk-through and a drawing.

Imports data, models.
"""
