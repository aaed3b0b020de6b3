"""What lies below an output: its runs and how they went, two of them compared, one brought home.

Reads only, and needs no TensorFlow.
"""
