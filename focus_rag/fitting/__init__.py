"""From labelled examples to a profile: contextual scoring, directions, alpha, split, report. `fit.py` is where it
starts.
"""
