"""What the bytes mean: pure schemas and values, on the standard library, numpy and pydantic."""
