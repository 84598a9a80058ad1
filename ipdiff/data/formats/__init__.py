"""Files as others wrote them: archives, encoded images, pickles and databases read without running them."""
