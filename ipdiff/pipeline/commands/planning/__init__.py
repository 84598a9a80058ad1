"""What targets cost before they are made: evaluations, memory, hours, disk."""
