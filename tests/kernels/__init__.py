"""The kernels, held to their references: compiled on a GPU, through triton's interpreter without one."""
