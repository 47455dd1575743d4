"""The one training loop, its runs, and what a finished student is worth."""
