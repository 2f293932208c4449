"""Acting on a model's attention and reading it: query shifts, split softmax, where heads look, and the tap and formulas
beneath.
"""
