"""The work: data, teachers, stores, numerics, models, objectives, training, report.

Nothing here imports `flows`. Importing this package imports no torch.
"""
