"""Acting on a model's attention and reading it: query shifts, split softmax, where heads look, the tap and the formulas
beneath.
"""
