"""The type of shapes and positions of tensors."""

Index = tuple[int, ...]  # one integer an axis
