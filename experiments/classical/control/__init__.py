"""Control tasks of Gymnasium, and the policies and algorithms of their experiments, on Lightning."""
