"""A larger reader trained on real text: the data pack, the mix of rows drawn from it, and the training on one GPU.

`docs/real-reader.md` has the commands in order.
"""
