"""What runs when: limits, selection, hand-over."""
