"""Small bridges to other people's programs. Each is imported by whoever uses that program, and by nobody else."""
