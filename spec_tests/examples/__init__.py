"""Implementations in other styles, and how they are brought before the suite."""
