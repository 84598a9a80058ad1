"""The scores themselves: features or their moments in, numbers out."""
