"""Networks: backbones, heads, the student, and how weights get into them."""
