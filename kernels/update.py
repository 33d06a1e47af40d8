"""The inner update of all parameters of all tasks in one launch: theta - rate * gradient.

With the same kernel the backward of a step: lambda - H (rate * lambda), and the direction
rate * lambda itself.
"""
