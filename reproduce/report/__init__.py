"""What people look at: tables, figures, pages.

Imports rows, study, training.
"""
