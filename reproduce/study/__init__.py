"""What is trained, as data: recipes, cells, studies, and the values that the paper plots.

Imports frontier.
"""
